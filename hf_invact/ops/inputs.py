"""Whether an operator takes the place of the native function."""

from __future__ import annotations

import torch
from torch import Tensor


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a function of these is recorded for a backward pass, in a form that the operators have.

    Where it is not, the native function answers: without gradients, to a tracer, which writes down a model to be run
    elsewhere (`torch.fx`, `torch.jit.trace`, `torch.export`, ONNX), and for tensors that are not stored as an array of
    numbers (nested, sparse, MKL-DNN).

    Args:
        tensors: what the function is computed from; anything that is not a tensor, such as the stand-ins of `torch.fx`,
            needs the native function.
    """
    if not torch.is_grad_enabled() or torch.jit.is_tracing() or _is_exporting():  # type: ignore[attr-defined]
        return False
    return all(is_array(tensor) for tensor in tensors) and any(tensor.requires_grad for tensor in tensors)


def is_array(tensor: object) -> bool:
    """Whether it is a tensor that is stored as an array of numbers."""
    return isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested


@torch.compiler.assume_constant_result  # to the compiler of PyTorch 2.11 it is always true
def _is_exporting() -> bool:
    return torch.compiler.is_exporting()
