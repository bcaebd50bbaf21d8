"""The Trainer of the scripts: its logs show losses that are not finite, and its checkpoints hold no secrets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Trainer, TrainingArguments

from hf_invact.trainer import InvActTrainerMixin

from ..common.masking import is_secret


class _NonFiniteLosses:
    """Sums the losses that are not finite, on their device."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        loss = loss.detach().float().sum()
        broken = torch.where(loss.isfinite(), torch.zeros_like(loss), loss)
        self._sum = broken if self._sum is None else self._sum + broken

    def take(self, accelerator: Accelerator) -> float:
        """The sum over all processes, each of which must call this: 0 if every loss since the last call was finite."""
        if self._sum is None:
            return 0.0
        total, self._sum = float(accelerator.gather(self._sum.reshape(1)).sum()), None
        return total


@contextmanager
def _hidden_secrets(arguments: TrainingArguments) -> Iterator[None]:
    hidden = {name: value for name, value in vars(arguments).items() if is_secret(name) and isinstance(value, str)}
    for name in hidden:
        setattr(arguments, name, None)
    try:
        yield
    finally:
        for name, value in hidden.items():
            setattr(arguments, name, value)


class FinetuneTrainer(InvActTrainerMixin, Trainer):
    """The Trainer of Transformers, with memory figures in its logs.

    `logging_nan_inf_filter`, which is on by default, replaces a training loss that is not finite with the mean of the
    earlier ones, and leaves such batches out of the evaluation, so a diverged training seems to end well. Here the logs
    and the results show the actual loss. The arguments that are saved with the weights hold no token.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._trained, self._evaluated = _NonFiniteLosses(), _NonFiniteLosses()
        self._has_diverged = False
        super().__init__(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self._trained.add(loss)
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, Any, Any]:
        loss, logits, labels = super().prediction_step(*args, **kwargs)
        if loss is not None:
            self._evaluated.add(loss)
        return loss, logits, labels

    def _save(self, *args: Any, **kwargs: Any) -> None:
        with _hidden_secrets(self.args):  # the arguments are saved with the weights
            super()._save(*args, **kwargs)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs or "train_loss" in logs:
            broken = self._trained.take(self.accelerator)
            self._has_diverged |= not math.isfinite(broken)
            if "loss" in logs:
                logs["loss"] += broken
            elif self._has_diverged:
                logs["train_loss"] = math.nan
        elif losses := [name for name in logs if name.endswith("_loss")]:
            logs[losses[0]] += self._evaluated.take(self.accelerator)
        super().log(logs, *args, **kwargs)
