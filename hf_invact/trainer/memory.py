"""Adds memory figures to a Trainer's training logs."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..memory import SavedActivations, by_part, peak_bytes, reset_peak
from ..memory.text import kept_table

logger = logging.getLogger(__name__)


class MemoryCallback(TrainerCallback):
    """Measures what the first training forward pass saves, and the peak CUDA memory of the run.

    Each training log then carries ``saved_activation_bytes`` and, where there is CUDA, ``peak_cuda_allocated_bytes``
    and ``peak_cuda_reserved_bytes``. From a callback they reach the console and ``state.log_history``; every reporter
    (TensorBoard, W&B, ...) sees them with `InvActTrainerMixin`. After the first step the parts of what is saved are
    logged once (at level INFO, by this module's logger), as ``hf-invact plan`` prints them.

    Attributes:
        saved: the measurement of the first forward pass; None before it, or where it cannot be taken (compiled, or
            offloaded).
        saved_by_part: its bytes, by part (see `hf_invact.memory.PARTS`); empty before the first step has ended.
    """

    def __init__(self) -> None:
        self.saved: SavedActivations | None = None
        self.saved_by_part: dict[str, int] = {}
        self._measuring = ExitStack()
        self._is_due = False

    def figures(self) -> dict[str, int]:
        """The memory figures that are known by now, in bytes."""
        saved = {"saved_activation_bytes": self.saved.total_bytes} if self.saved else {}
        return {**saved, **peak_bytes()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measuring.close()  # of a training that was interrupted
        self.saved, self.saved_by_part = None, {}
        reset_peak()
        self._is_due = not (args.torch_compile or args.n_gpu > 1)
        if not self._is_due:
            logger.info("saved activation bytes are not measured under torch.compile or nn.DataParallel")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not earlier: data that cannot be read would leave the hooks behind.
        if self._is_due:
            self._is_due = False
            self._measure_next_forward(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.saved is not None and not self.saved_by_part:
            self.saved_by_part = by_part(self.saved, kwargs["model"])
            if state.is_local_process_zero:
                logger.info("the first step was measured:\n%s", kept_table(measured=self.saved_by_part))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._measuring.close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs and "loss" in logs:
            logs.update(self.figures())
            state.log_history[-1].update(self.figures())

    def _measure_next_forward(self, model: nn.Module) -> None:
        """Meter the next forward pass that trains, and take the hooks away after it."""

        def enter(module: nn.Module, args: Any) -> None:
            if self.saved is not None or not module.training or not torch.is_grad_enabled():
                return
            if hooks_are_active():  # of these only the innermost run, so the step would keep all on the device
                self._measuring.close()
                logger.info("saved activation bytes are not measured where they are offloaded")
                return
            self.saved = self._measuring.enter_context(SavedActivations(module))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if self.saved is not None:
                self._measuring.close()

        self._measuring.callback(model.register_forward_pre_hook(enter).remove)
        # Called also when the forward pass raises, so that nothing stays installed.
        self._measuring.callback(model.register_forward_hook(leave, always_call=True).remove)


def hooks_are_active() -> bool:
    """Whether something (activation offloading, say) handles here what autograd saves."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("only asked whether there are any"):
            return False
    except RuntimeError:
        return True


def add_memory_figures(logs: dict[str, Any], callbacks: Iterable[TrainerCallback]) -> None:
    """Put the figures of every `MemoryCallback` into a training log, before any reporter sees it."""
    if "loss" in logs:
        for callback in callbacks:
            if isinstance(callback, MemoryCallback):
                logs.update(callback.figures())
