"""Calls kernels without PyTorch's dispatcher, where nothing has to see the operator that they belong to.

For a small tensor, an operator that is registered in Python takes longer to reach its kernel than the kernel runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

_PLAIN = (Tensor, nn.Parameter)


def directly(operator: OpOverload, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """An operator without a derivative, of which the kernel alone is called where that makes no difference.

    While gradients are recorded, the operator is called: it refuses to be differentiated.
    """

    def call(*args: Any) -> Any:
        return (kernel if is_unseen(args) and not torch.is_grad_enabled() else operator)(*args)

    return call


def with_derivative_directly(
    operator: OpOverload, kernel: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """The same for an operator with a derivative.

    Args:
        kernel, setup_context, backward: as they are registered for the operator. A backward function that returns
            fewer gradients than there are arguments has none for the others.
    """

    def forward(ctx: Any, *args: Any) -> Any:
        output = kernel(*args)
        setup_context(ctx, args, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(operator.name().rpartition("::")[2], (torch.autograd.Function,), methods)

    def call(*args: Any) -> Any:
        return (function.apply if is_unseen(args) else operator)(*args)

    return call


def is_unseen(args: tuple[Any, ...]) -> bool:
    """Whether the tensors among the arguments are plain ones, and no compiler, mode or transform watches operators."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and all(type(each) in _PLAIN or not isinstance(each, Tensor) for each in args)
    )
