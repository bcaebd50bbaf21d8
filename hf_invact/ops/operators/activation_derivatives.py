"""How the operators are differentiated: what they keep for the backward pass, and that there is one derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..buffers import with_layout
from ..keys import curve_of
from . import activation as operators
from .derivatives import refusal


def _differentiate(
    operator: OpOverload,
    backward: OpOverload,
    inputs: int,
    label: str,
    saves_output: bool,
    exact_backward: OpOverload | None = None,
) -> None:
    """Register the gradient operator as the derivative of an operator, and that it has none itself.

    Args:
        inputs: how many tensors of one shape the operator takes, before curve and backend.
        label: how messages call it, before the curve's name.
        saves_output: the operator returns the side bits too, and saves output and bits in place of its first input. The
            very tensor that it returns is saved, which the next layer keeps anyway ("Inverted Activations", arXiv
            2407.15545).
        exact_backward: the gradient operator from the inputs, which are saved where the output does not tell enough.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.curve, ctx.backend = inputs
        ctx.set_materialize_grads(False)
        if saves_output:
            y, side = output
            ctx.mark_non_differentiable(side)
        ctx.saves_output = saves_output and (exact_backward is None or operators.gate_keeps_output(*inputs[:3]))
        if ctx.saves_output:
            ctx.save_for_backward(y, *tensors[1:], side if curve_of(ctx.curve).x_min is not None else None)
            ctx.stride = y.stride()
        else:
            ctx.save_for_backward(*tensors)

    def apply_gradient(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * (inputs + 2)
        kept, apply = ctx.saved_tensors, backward
        if ctx.saves_output:
            # The bits are in memory order, which hooks that move saved tensors elsewhere need not keep.
            y, *others = kept
            kept = (with_layout(y, y.size(), ctx.stride), *others)
        elif exact_backward is not None:
            apply = exact_backward
        gradients = apply(dy, *kept, ctx.curve, ctx.backend)
        return *(gradients if inputs > 1 else (gradients,)), None, None

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """`torch.vmap`: one more dimension is nothing to an element-wise function. All samples share their bits."""
        tensors = _batched(info.batch_size, in_dims[:inputs], args[:inputs])
        return operator(*tensors, *args[inputs:]), (0, None) if saves_output else 0

    def name_it(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.name = f"{label} {curve_of(inputs[-2]).name}"

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise refusal(ctx.name)

    def vmap_of_gradient(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """Many gradients of one output, or those of many samples, which share their bits."""
        count = 1 + inputs
        tensors, dims, others = args[:count], in_dims[:count], args[count:]
        if dims[1] is not None:
            # As at the time of forward, when all had their batch dimension in front.
            gradients = backward(*_batched(info.batch_size, dims, tensors), *others)
        else:
            each = [
                backward(*(_sample(*pair, index) for pair in zip(tensors, dims, strict=True)), *others)
                for index in range(info.batch_size)
            ]
            gradients = torch.stack(each) if inputs == 1 else tuple(map(torch.stack, zip(*each, strict=True)))
        return gradients, 0 if inputs == 1 else (0,) * inputs

    _register(operator, setup_context, apply_gradient, vmap)
    _register(backward, name_it, refuse, vmap_of_gradient)


def _register(
    operator: OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any], vmap: Callable[..., Any]
) -> None:
    """Register an operator's derivative, and the same for torch.func's transforms, which take an autograd function."""
    name = operator.name()
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=operators.LIBRARY)

    def forward(*args: Any) -> Any:
        return operator(*args)

    methods = {"forward": forward, "setup_context": setup_context, "backward": backward, "vmap": vmap}
    static_methods = {key: staticmethod(method) for key, method in methods.items()}
    function: Any = type(name.rpartition("::")[2], (torch.autograd.Function,), static_methods)
    operators.LIBRARY.impl(name, function.apply, "FuncTorchDynamicLayerFrontMode")


def _batched(size: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """All with a batch dimension in front."""
    return [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]


def _sample(tensor: Tensor, dim: int | None, index: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, index)


_differentiate(operators.ACTIVATION, operators.ACTIVATION_BACKWARD, 1, "an inverted", saves_output=True)
_differentiate(
    *(operators.GATE, operators.GATE_BACKWARD, 2, "an inverted gate of"),
    saves_output=True,
    exact_backward=operators.EXACT_GATE_BACKWARD,
)
_differentiate(operators.EXACT_ACTIVATION, operators.EXACT_ACTIVATION_BACKWARD, 1, "a recomputed", saves_output=False)
_differentiate(operators.EXACT_GATE, operators.EXACT_GATE_BACKWARD, 2, "a recomputed gate of", saves_output=False)
