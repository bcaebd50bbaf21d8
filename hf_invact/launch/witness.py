"""Tells what became of the flag."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..trainer import InvertedActivationsCallback
from .seen import INVERTED, MADE, TRAINED, Seen


class Witness(TrainerCallback):
    """Notes what a Trainer does."""

    def __init__(self, inverted: InvertedActivationsCallback, seen: Seen) -> None:
        self.inverted = inverted
        self.seen = seen

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.seen.note(MADE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seen.note(TRAINED)
        if self.inverted.report is not None and self.inverted.report.patched:
            self.seen.note(INVERTED)
