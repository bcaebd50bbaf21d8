"""torch.func's transforms work as on the native function; derivatives without a formula raise an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from hf_invact.curves import GELU, Curve, softplus
from hf_invact.ops import Saving, gate, invert
from tests.helpers import each_saving, inverted_gate, native_gate, normal

Function = Callable[[Tensor], Tensor]
Gate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Operation:
    """A function of one tensor, its native counterpart, and how messages call it."""

    ours: Function
    native: Function
    name: str


def inverted(curve: Curve) -> Operation:
    return Operation(lambda x: invert(x, curve), curve.forward, f"an inverted {curve.name}")


def gated(curve: Curve, saving: Saving, name: str) -> Operation:
    """A gate whose `up` depends on the same tensor."""
    return Operation(lambda x: gate(x, x + 1, curve, saving), lambda x: curve.forward(x) * (x + 1), name)


OPERATIONS = {
    "with-bits": inverted(GELU),
    "without-bits": inverted(softplus()),
    "gate-with-bits": gated(GELU, "output", "an inverted gate of gelu"),
    "gate-without-bits": gated(softplus(), "output", "an inverted gate of softplus"),
    "gate-with-both-inputs": gated(GELU, "inputs", "a recomputed gate of gelu"),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
each_curve = pytest.mark.parametrize("curve", [GELU, softplus()], ids=["with-bits", "without-bits"])


def of_squares(function: Function) -> Function:
    """A scalar whose gradient depends on the output, so that it differs for the output of another sample."""
    return lambda x: function(x).square().sum()


def of_a_batch(function: Function, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(vmap(function, in_dims=1, out_dims=1)(leaf).square().sum(), leaf)
    return gradient


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "grad": lambda function, x: grad(of_squares(function))(x),
    "vjp": lambda function, x: vjp(function, x)[1](x)[0],
    "vmap": lambda function, x: vmap(function)(x),
    "vmap-second-dimension": lambda function, x: vmap(function, in_dims=1)(x),
    "gradient-of-vmap": of_a_batch,
    "gradients-of-samples": lambda function, x: vmap(grad(of_squares(function)))(x),
    "gradients-of-columns": lambda function, x: vmap(grad(of_squares(function)), in_dims=1)(x),
    "nested": lambda function, x: vmap(vmap(grad(of_squares(function))))(x),
    "jacobian": lambda function, x: jacrev(function)(x),
    "jacobians-of-samples": lambda function, x: vmap(jacrev(function))(x),
    "one-gradient-for-all-samples": lambda function, x: vmap(lambda row: vjp(function, row)[1](x[0])[0])(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_operation
def test_transforms_as_the_native_function(operation: Operation, transform: str) -> None:
    x = normal(6, 11)
    result, native = (TRANSFORMS[transform](function, x) for function in (operation.ours, operation.native))
    torch.testing.assert_close(result, native, rtol=1e-5, atol=1e-5)


def both(function: Gate) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """The gradients of both inputs, each of which depends on the output."""
    return grad(lambda a, u: function(a, u).square().sum(), argnums=(0, 1))


IN_DIMS = {"both": (0, 0), "columns-of-gate": (1, 0), "gate-alone": (0, None), "up-alone": (None, 1)}
TRANSFORMS_OF_TWO: dict[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "vmap": lambda function, in_dims, a, u: vmap(function, in_dims)(a, u),
    "gradients-of-samples": lambda function, in_dims, a, u: vmap(both(function), in_dims)(a, u),
    "gradient-of-vmap": lambda function, in_dims, a, u: both(vmap(function, in_dims))(a, u),
    "jacobians-of-samples": lambda function, in_dims, a, u: vmap(jacrev(function, argnums=(0, 1)), in_dims)(a, u),
    "halves-of-samples": lambda function, in_dims, a, u: vmap(
        grad(lambda a, u: function(*torch.cat([a, u]).chunk(2)).square().sum(), argnums=(0, 1)), in_dims
    )(a, u),
}


@pytest.mark.parametrize("in_dims", IN_DIMS.values(), ids=IN_DIMS)
@pytest.mark.parametrize("transform", TRANSFORMS_OF_TWO)
@each_saving
@each_curve
def test_transforms_of_two_inputs(
    curve: Curve, saving: Saving, transform: str, in_dims: tuple[int | None, ...]
) -> None:
    shapes = {0: (6, 11), 1: (11, 6), None: (11,)}
    a, u = (normal(*shapes[dim], seed=seed) for seed, dim in enumerate(in_dims))
    result, native = (
        TRANSFORMS_OF_TWO[transform](function, in_dims, a, u)
        for function in (inverted_gate(curve, saving), native_gate(curve))
    )
    torch.testing.assert_close(result, native, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalised", [True, False], ids=["of-the-output", "of-a-sum"])
@each_operation
def test_a_second_derivative_is_refused(operation: Operation, penalised: bool) -> None:
    """Otherwise a penalty on the gradient would silently have no effect."""
    x = normal(100).requires_grad_()
    y = operation.ours(x)
    (dx,) = torch.autograd.grad((y.square() if penalised else y).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=f"^{operation.name} has no second derivative.*unpatch_model"):
        dx.square().sum().backward()


@each_operation
def test_a_second_derivative_of_a_transform_is_refused(operation: Operation) -> None:
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(lambda x: grad(of_squares(operation.ours))(x).sum())(normal(5))
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        hessian(of_squares(operation.ours))(normal(5))


def test_a_graph_of_the_gradient_alone_is_no_error() -> None:
    x, weight = normal(100).requires_grad_(), normal(100).requires_grad_()
    loss = (invert(x, GELU) * weight).sum()
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    (native,) = torch.autograd.grad((torch.nn.functional.gelu(x) * weight).sum(), x)
    torch.testing.assert_close(dx, native, rtol=1e-4, atol=1e-4)


@each_operation
def test_a_forward_derivative_is_refused_where_a_gradient_is_wanted_too(operation: Operation) -> None:
    x = normal(10)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
        operation.ours(forward_ad.make_dual(x.clone().requires_grad_(), x))


@each_operation
def test_a_forward_derivative_alone_is_the_native_one(operation: Operation) -> None:
    x = normal(10)
    _, tangent = jvp(operation.ours, (x,), (x,))
    assert torch.equal(tangent, jvp(operation.native, (x,), (x,))[1])
