"""Adds memory figures to a Trainer's training logs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..display.tables import saved_bytes_table
from ..memory import SavedActivations, by_part, peak_bytes, reset_peak
from .metering import StepMeter, why_not_measured

logger = logging.getLogger(__name__)


class MemoryCallback(TrainerCallback):
    """Measures what the forward passes of the first step save, and the peak CUDA memory of the run.

    Each training log then contains ``saved_activation_bytes`` and, with CUDA, ``peak_cuda_allocated_bytes`` and
    ``peak_cuda_reserved_bytes``. From a callback, these reach the console and ``state.log_history``; with
    `InvActTrainerMixin` they reach every reporter (TensorBoard, W&B, ...). After the first step, the saved bytes are
    logged once by part (at level INFO, by this module's logger), in the format of ``hf-invact plan``.

    If a step runs the model several times before a backward pass (for a pairwise loss, say), all of these forward
    passes count; with gradient accumulation, those before the first backward pass. Nothing is measured if parts of the
    model are compiled, if saved tensors are offloaded, or under nn.DataParallel: a line at level WARNING then says why.

    Attributes:
        saved: the measurement; None before the first training forward pass, or if it cannot be measured.
        saved_by_part: its bytes, by part (see `hf_invact.memory.PARTS`); empty before the first step has ended.
    """

    def __init__(self) -> None:
        self.saved_by_part: dict[str, int] = {}
        self._meter: StepMeter | None = None
        self._is_due = False
        self._is_first_step = False

    @property
    def saved(self) -> SavedActivations | None:
        return self._meter.saved if self._meter else None

    def figures(self) -> dict[str, int]:
        """The memory figures known so far, in bytes."""
        saved = {"saved_activation_bytes": self.saved.total_bytes} if self.saved else {}
        return {**saved, **peak_bytes()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_measuring()  # an earlier training may have been interrupted
        self._meter, self.saved_by_part = None, {}
        self._is_due = True
        reset_peak()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not earlier: other callbacks may compile the model, or replace parts of it, when training begins.
        if not self._is_due:
            return
        self._is_due = False
        if reason := why_not_measured(args, kwargs["model"]):
            _warn_not_measured(state, reason)
        else:
            self._measure_next_forward(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._meter is None or not self._is_first_step:
            return
        self._end_measuring()
        if self.saved is None:
            _warn_not_measured(state, self._meter.why_not)
            return
        self.saved_by_part = by_part(self.saved, kwargs["model"])
        if state.is_local_process_zero:
            logger.info("the first step was measured:\n%s", saved_bytes_table(measured=self.saved_by_part))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end_measuring()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and _is_training_log(logs):
            logs.update(self.figures())
            state.log_history[-1].update(self.figures())

    def _measure_next_forward(self, model: nn.Module) -> StepMeter:
        """Meter the forward passes of this step, and leave nothing behind afterwards."""
        self._meter, self._is_first_step = StepMeter.of(model), True
        return self._meter

    def _end_measuring(self) -> None:
        self._is_first_step = False
        if self._meter is not None:
            self._meter.end()


def _warn_not_measured(state: TrainerState, reason: str) -> None:
    if state.is_local_process_zero:
        logger.warning("saved activation bytes are not measured: %s", reason)


def _is_training_log(logs: dict[str, Any]) -> bool:
    """Whether it is a log of training steps (a loss may have another name), or the final log of the training."""
    return not logs.keys().isdisjoint(("loss", "learning_rate", "train_runtime"))


def add_memory_figures(logs: dict[str, Any], callbacks: Iterable[TrainerCallback]) -> None:
    """Add the figures of every `MemoryCallback` to a training log, before any reporter sees it."""
    if _is_training_log(logs):
        for callback in callbacks:
            if isinstance(callback, MemoryCallback):
                logs.update(callback.figures())
