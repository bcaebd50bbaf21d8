"""Training steps of a model on one batch, to be timed and metered."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_invact.memory import SavedActivations

from ..timing import synchronize


class Training:
    """Whole training steps on one batch: forward, backward, optimizer.

    Every step begins with the same weights, in all variants. Dropout draws the same numbers in each step.

    Args:
        model: in training mode. The variants are entered on it.
        batch: the model's arguments.
        optimizer: of its parameters, with a learning rate of 0.
        seed: of dropout.
    """

    def __init__(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, seed: int
    ) -> None:
        self.model, self.batch, self.optimizer, self.seed = model, batch, optimizer, seed
        self.device: torch.device = model.device

    def loss(self) -> Tensor:
        """The forward pass."""
        loss: Tensor = self.model(**self.batch).loss
        return loss

    def update(self, loss: Tensor) -> None:
        """The backward pass and the optimizer's step."""
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> float:
        """Take a step. Returns its seconds."""
        torch.manual_seed(self.seed)
        synchronize(self.device)
        began = time.perf_counter()
        self.update(self.loss())
        synchronize(self.device)
        return time.perf_counter() - began

    def meter(self) -> dict[str, Any]:
        """The first loss, and the bytes saved for backward."""
        torch.manual_seed(self.seed)
        own = [*self.model.parameters(), *self.model.buffers(), *self.batch.values()]
        # Not by module: hooks on the modules of a compiled model would be compiled too.
        with SavedActivations(nn.Module(), own) as saved:
            loss = self.loss()
        return {"first_loss": loss.item(), "kept_bytes": saved.total_bytes}

    def peak(self) -> dict[str, int]:
        """A step's peak memory, including the weights and the optimizer's state; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        torch.cuda.reset_peak_memory_stats(self.device)
        self.step()
        return {"peak_bytes": torch.cuda.max_memory_allocated(self.device)}
