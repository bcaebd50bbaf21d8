"""torch.func's transforms work as on the native function; what there is no formula for raises, and says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from hf_invact.curves import GELU, Curve, softplus
from hf_invact.ops import invert
from tests.helpers import normal

Function = Callable[[Tensor], Tensor]
each_curve = pytest.mark.parametrize("curve", [GELU, softplus()], ids=["with-bits", "without-bits"])


def inverted(curve: Curve) -> Function:
    return lambda x: invert(x, curve)


def of_squares(function: Function) -> Function:
    """A scalar whose gradient depends on the output, so that an output of another sample would show."""
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
@each_curve
def test_transforms_as_the_native_function(curve: Curve, transform: str) -> None:
    x = normal(6, 11)
    result, native = (TRANSFORMS[transform](function, x) for function in (inverted(curve), curve.forward))
    torch.testing.assert_close(result, native, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalised", [True, False], ids=["of-the-output", "of-a-sum"])
@each_curve
def test_a_second_derivative_is_refused(curve: Curve, penalised: bool) -> None:
    """A penalty on the gradient would otherwise add nothing to it, and nobody would know."""
    x = normal(100).requires_grad_()
    y = invert(x, curve)
    (dx,) = torch.autograd.grad((y.square() if penalised else y).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=rf"inverted {curve.name} has no second derivative.*unpatch_model"):
        dx.square().sum().backward()


@each_curve
def test_a_second_derivative_of_a_transform_is_refused(curve: Curve) -> None:
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad(lambda x: grad(of_squares(inverted(curve)))(x).sum())(normal(5))
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        hessian(of_squares(inverted(curve)))(normal(5))


def test_a_graph_of_the_gradient_alone_is_no_error() -> None:
    x, weight = normal(100).requires_grad_(), normal(100).requires_grad_()
    loss = (invert(x, GELU) * weight).sum()
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    (native,) = torch.autograd.grad((torch.nn.functional.gelu(x) * weight).sum(), x)
    torch.testing.assert_close(dx, native, rtol=1e-4, atol=1e-4)


@each_curve
def test_a_forward_derivative_is_refused_where_a_gradient_is_wanted_too(curve: Curve) -> None:
    x = normal(10)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
        invert(forward_ad.make_dual(x.clone().requires_grad_(), x), curve)


@each_curve
def test_a_forward_derivative_alone_is_the_native_one(curve: Curve) -> None:
    x = normal(10)
    _, tangent = jvp(inverted(curve), (x,), (x,))
    assert torch.equal(tangent, jvp(curve.forward, (x,), (x,))[1])
