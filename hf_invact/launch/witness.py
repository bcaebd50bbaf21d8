"""Tells what became of the flag."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..trainer import InvertedActivationsCallback

if TYPE_CHECKING:
    from .trainers import Seen


class Witness(TrainerCallback):
    """Counts what a Trainer does, and says what was patched when it trains."""

    def __init__(self, inverted: InvertedActivationsCallback, seen: Seen) -> None:
        self.inverted = inverted
        self.seen = seen

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seen.made += 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.trained += 1
        if state.is_local_process_zero:
            print(f"hf-invact run: {str(self.inverted.report).splitlines()[0]}", file=sys.stderr)
