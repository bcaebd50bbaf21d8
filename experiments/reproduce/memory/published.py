"""Emulates the model of the reference notebook for Mistral, which needs a GPU and bitsandbytes.

The notebook loads the weights in 4 bits, and prepares them for adapters that it then does not attach. In this model all
weights are frozen. The head, everything outside of the linear layers, and the hidden states are float32. A 4-bit layer
casts its input to bfloat16, keeps this copy (until 2024, bitsandbytes did so although a frozen weight needs no
gradient), and casts its output back. Attention runs in half precision. Gradients begin at the output of the embeddings.

The key-value cache for generation, which the notebook's figure includes, is not emulated.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

COMPUTE_DTYPE = torch.bfloat16


class _KeepInput(torch.autograd.Function):
    """A product with a frozen weight that keeps its input although it does not need it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        _, weight = ctx.saved_tensors
        return dy @ weight, None


class EmulatedLinear4bit(nn.Linear):
    """Keeps for backward what bitsandbytes' 4-bit layer kept.

    Its weight is in `COMPUTE_DTYPE`, but stored as integers, as in bitsandbytes: code that looks for the dtype of
    hidden states must not find it here.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        stored = linear.weight.detach().to(COMPUTE_DTYPE).view(torch.int16)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = _KeepInput.apply(input.to(COMPUTE_DTYPE), self.weight.view(COMPUTE_DTYPE))
        return output.to(input.dtype)


def as_in_the_notebook(model: PreTrainedModel) -> None:
    """Freeze a model as the notebook does, in evaluation mode. Its linear layers must have no biases.

    >>> from transformers import MistralConfig, MistralForCausalLM
    >>> small = MistralConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    >>> model = MistralForCausalLM(small)
    >>> as_in_the_notebook(model)
    >>> model.model.layers[0].mlp.up_proj, model.lm_head.weight.dtype
    (EmulatedLinear4bit(in_features=32, out_features=64, bias=False), torch.float32)
    """
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(module, name, EmulatedLinear4bit(child))
        if not isinstance(module, nn.Linear) or module is head:
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(weight.detach().float(), requires_grad=False))
    model.config._is_quantized = True  # attention then uses the config's dtype
    model.enable_input_require_grads()
    model.eval()
