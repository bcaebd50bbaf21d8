"""For what a batch is made, and the numbers in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from transformers import PretrainedConfig, PreTrainedModel

Batch: TypeAlias = dict[str, Any]

SEED = 0


@dataclass(frozen=True)
class Wanted:
    """What to make a batch for.

    Attributes:
        model: the model.
        takes: names of the arguments that it takes.
        samples: how many sequences, images or recordings.
        tokens: in a sequence.
    """

    model: PreTrainedModel
    takes: frozenset[str]
    samples: int
    tokens: int

    @property
    def config(self) -> PretrainedConfig:
        """The model's."""
        config: PretrainedConfig = self.model.config
        return config

    @property
    def device(self) -> torch.device:
        """Where the model's first weights are; the CPU where they are missing."""
        weight = next(self.model.parameters(), None)
        return torch.device("cpu") if weight is None or weight.is_meta else weight.device

    def numbers(self, *shape: int) -> Tensor:
        """Random numbers of the dtype that the model computes in, the same every time."""
        generator = torch.Generator("cpu").manual_seed(SEED)
        dtypes = (weight.dtype for weight in self.model.parameters() if weight.is_floating_point())
        dtype = next((dtype for dtype in dtypes if dtype.itemsize > 1), torch.float32)  # in one byte they are stored
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(self.device, dtype)

    def integers(self, values: Any) -> Tensor:
        """Real integers, also where tensors are fake."""
        with unset_fake_temporarily():
            return torch.tensor(values, dtype=torch.long, device="cpu").to(self.device)

    def ones(self, *shape: int) -> Tensor:
        """A real mask that hides nothing."""
        with unset_fake_temporarily():
            return torch.ones(shape, dtype=torch.long, device=self.device)
