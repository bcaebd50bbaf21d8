"""A callback that records what a Trainer does. (It imports Transformers, which `events` must not.)"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..trainer import InvertedActivationsCallback
from .events import INVERTED, MADE, TRAINED, TrainerEvents


class EventRecorder(TrainerCallback):
    """Records that a Trainer was made, that it trained, and whether anything was inverted."""

    def __init__(self, inverted: InvertedActivationsCallback, events: TrainerEvents) -> None:
        self.inverted = inverted
        self.events = events

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.events.record(MADE)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.events.record(TRAINED)
        if self.inverted.report is not None and self.inverted.report.patched:
            self.events.record(INVERTED)
