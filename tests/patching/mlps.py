"""MLPs of small models in all the ways they are trained, and what they keep for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.models import tiny_model

INTERMEDIATE, HIDDEN = 96, 32
BATCH = (2, 16)

# The projections into and out of the MLP of the first layer.
LAYER = {
    "gpt2": ("transformer.h.0.mlp", ("c_fc",), "c_proj"),
    "bert": ("bert.encoder.layer.0", ("intermediate.dense",), "output.dense"),
    "mistral": ("model.layers.0.mlp", ("gate_proj", "up_proj"), "down_proj"),
    "llama": ("model.layers.0.mlp", ("gate_proj", "up_proj"), "down_proj"),
}
GATED = ("mistral", "llama")


@dataclass(frozen=True)
class Training:
    """How an MLP is trained.

    Attributes:
        dtype: dtype of the weights.
        autocast: whether to compute under autocast to bfloat16.
        frozen: the frozen projections: "up" (all into the MLP), "down".
        adapters: the projections with LoRA: "up", "down".
        dropout: dropout of the adapters.
        are_adapters_float32: whether the adapters are in float32, PEFT's default.
    """

    dtype: torch.dtype = torch.bfloat16
    autocast: bool = False
    frozen: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    dropout: float = 0.0
    are_adapters_float32: bool = False


class MLP:
    """The first MLP of a small model with one layer."""

    def __init__(self, name: str, training: Training) -> None:
        prefix, into, out = LAYER[name]
        # GPT-2: the fused function, and no dropout after the block.
        options: dict[str, Any] = {"activation": "gelu_pytorch_tanh", "resid_pdrop": 0.0} if name == "gpt2" else {}
        self.training = training
        self.model: nn.Module = tiny_model(name, num_hidden_layers=1, **options).to(training.dtype)
        self.projections = {"up": [f"{prefix}.{each}" for each in into], "down": [f"{prefix}.{out}"]}
        for each in self._all(training.frozen):
            self.model.get_submodule(each).requires_grad_(False)
        if training.adapters:
            lora = LoraConfig(
                r=4,
                target_modules=self._all(training.adapters),
                lora_dropout=training.dropout,
                fan_in_fan_out=name == "gpt2",
                init_lora_weights=False,  # else B is 0, and A has no gradient
            )
            self.model = get_peft_model(self.model, lora, autocast_adapter_dtype=training.are_adapters_float32)
            self.projections = {
                key: [f"base_model.model.{each}" for each in names] for key, names in self.projections.items()
            }
            prefix = f"base_model.model.{prefix}"
        layer = self.model.get_submodule(prefix)
        self.block: nn.Module = nn.Sequential(layer.intermediate, layer.output.dense) if name == "bert" else layer
        self.model.train()

    def _all(self, which: Sequence[str]) -> list[str]:
        return [each for key in which for each in self.projections[key]]

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cpu", torch.bfloat16) if self.training.autocast else nullcontext()

    def kept(self) -> float:
        """What the block keeps, without its input and the adapters' low-rank tensors, in units of `INTERMEDIATE`.

        It is the difference that one more token makes, so that copies of weights do not count.
        """
        tokens = BATCH[0] * BATCH[1]
        size = tokens * INTERMEDIATE * (2 if self.training.autocast else self.training.dtype.itemsize)
        return (self._kept_bytes(2) - self._kept_bytes(1)) / size

    def _kept_bytes(self, batches: int) -> int:
        torch.manual_seed(0)
        x = normal(batches * BATCH[0], BATCH[1], HIDDEN, dtype=self.training.dtype).requires_grad_()
        with SavedActivations(self.model, ignore=[x]) as saved, self.autocast():
            self.block(x)
        into = tuple(self.projections["up"])
        return sum(
            record.bytes
            for record in saved.records
            if not record.saved_by.startswith(into) and ".lora_B." not in record.saved_by
        )

    def result_and_gradients(self) -> tuple[Tensor, list[Tensor]]:
        """The block's result and the gradients of its input and weights."""
        torch.manual_seed(0)
        x = normal(*BATCH, HIDDEN, dtype=self.training.dtype).requires_grad_()
        with self.autocast():
            y = self.block(x)
        leaves = [x, *(weight for weight in self.block.parameters() if weight.requires_grad)]
        gradients = torch.autograd.grad(y, leaves, normal(*y.shape, dtype=y.dtype, seed=1), allow_unused=True)
        return y.detach(), [gradient for gradient in gradients if gradient is not None]
