"""What a run measures while it trains. Checkpoints store it, so that a resumed run has all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_invact.memory import by_part, intermediate_units
from hf_invact.patching import activation_sites
from hf_invact.trainer import MemoryCallback

from .checkpoints.integrity import read_state
from .study import GradientChecks

MEASURED_FACTS = (
    "saved_bytes",
    "saved_parts",
    "intermediate_units",
    "peak_cuda_allocated_bytes",
    "peak_cuda_reserved_bytes",
    "train_seconds",
    "step_seconds",
    "gradients",
)
"""The measurements in a run's result."""

_SIZES, _PEAKS = MEASURED_FACTS[:3], MEASURED_FACTS[3:5]
_STATE_KEY = "hf_invact"  # in the callbacks' states that the Trainer writes into each checkpoint


class Measurements(TrainerCallback):
    """Memory figures, the seconds of each training step, and the gradients that were compared.

    The first step after each start is left out of the times: it is a warm-up, and the meter runs in it.

    Args:
        memory: must come before this callback.
        checks: must come before this callback too.
    """

    def __init__(self, memory: MemoryCallback, checks: Sequence[GradientChecks]) -> None:
        self._memory, self._checks = memory, checks
        self._before: dict[str, Any] = {}  # what the checkpoint holds
        self._seconds: list[float] = []
        self._began_training = self._ended_training = self._began_step = 0.0
        self._is_warm = False
        self._sizes: dict[str, Any] = {}

    def resume_from(self, checkpoint: Path) -> None:
        """Load what was measured before a checkpoint."""
        state = read_state(checkpoint) or {}
        callbacks = state.get("stateful_callbacks")
        before = callbacks.get(_STATE_KEY) if isinstance(callbacks, dict) else None
        self._before = before if isinstance(before, dict) else {}

    def facts(self) -> dict[str, Any]:
        """Everything that is measured so far, as JSON-compatible data; None for what was not measured."""
        before, peaks = self._before, self._memory.figures()
        seconds = [*before.get("steps", []), *self._seconds]
        trained = (self._ended_training or now()) - self._began_training if self._began_training else 0.0
        gradients = [entry for check in self._checks for entry in check.found]
        return {
            **{name: before.get(name, self._sizes.get(name)) for name in _SIZES},
            **{name: _largest(before.get(name), peaks.get(name)) for name in _PEAKS},
            "train_seconds": before.get("train_seconds", 0.0) + trained,
            "step_seconds": statistics.median(seconds) if seconds else None,
            "steps": seconds,
            "gradients": [*before.get("gradients", []), *gradients],
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began_training = now()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began_step = now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._is_warm:
            self._seconds.append(now() - self._began_step)
        self._is_warm = True
        if not self._sizes:
            self._sizes = _sizes(kwargs["model"], self._memory)
        state.stateful_callbacks[_STATE_KEY] = self.facts()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ended_training = now()


def now() -> float:
    """Seconds, once the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _largest(*values: int | None) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _sizes(model: PreTrainedModel, memory: MemoryCallback) -> dict[str, Any]:
    if (saved := memory.saved) is None:
        return {}
    return {
        "saved_bytes": saved.total_bytes,
        "saved_parts": by_part(saved, model),
        "intermediate_units": intermediate_units(saved, model, activation_sites(model)),
    }
