"""Shared by the tests of the Trainer: tiny data, fast arguments, and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_invact import InvActTrainingArguments
from hf_invact.sites import patched_sites
from tests.models import VOCABULARY

SAVED = "saved_activation_bytes"


def records(count: int = 8, tokens: int = 16) -> list[dict[str, Tensor]]:
    """A data set: random tokens that are their own labels."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (count, tokens), generator=generator)
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def arguments(folder: Path, cls: type[TrainingArguments] = InvActTrainingArguments, **options: Any) -> Any:
    """Three steps on the CPU with two records each, every step logged."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return cls(**{**defaults, **options})


def make_trainer(
    model: PreTrainedModel | None,
    args: TrainingArguments,
    *callbacks: TrainerCallback,
    cls: type[Trainer] = Trainer,
    data: Sequence[dict[str, Tensor]] | None = None,
    **options: Any,
) -> Trainer:
    data = records() if data is None else data
    return cls(model, args, train_dataset=data, eval_dataset=records(2), callbacks=list(callbacks), **options)


def training_logs(trainer: Trainer) -> list[dict[str, Any]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in training_logs(trainer)]


def is_patched(model: nn.Module) -> bool:
    return any(True for _ in patched_sites(model))


def installed_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class Witness(TrainerCallback):
    """Records at each event whether the model is patched."""

    def __init__(self) -> None:
        self.patched: dict[str, list[bool]] = {}

    def _note(self, event: str, model: nn.Module) -> None:
        self.patched.setdefault(event, []).append(is_patched(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._note("train_begin", model)

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._note("step", model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._note("evaluate", model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._note("train_end", model)


class FailAt(TrainerCallback):
    """Raises at the beginning of a step, once."""

    def __init__(self, step: int) -> None:
        self.step: int | None = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.step = None
            raise RuntimeError("the step failed")
