"""The operators for norms by PyTorch's own checks, their transforms, and which backend they call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.func import grad, jacrev, vmap
from torch.library import opcheck

from hf_invact.norms import LAYER_NORM, LLAMA, NormForm
from hf_invact.ops import NormSaving
from hf_invact.ops.eager import norm as eager
from hf_invact.ops.operators import norm as operators
from tests.helpers import LAYOUTS, dtype_name, normal
from tests.ops.norms import EPS, each_form, each_norm_saving, each_of_three, norm_of

FP32, FP64, BF16 = torch.float32, torch.float64, torch.bfloat16
SHAPE = (2, 8, 3, 6)
each_kind = pytest.mark.parametrize("kind", ["norm", "exact_norm"])


def operator_of(name: str) -> OpOverload:
    operator: OpOverload = getattr(operators, name.upper())
    return operator


def arguments_of(
    kind: str, form: NormForm, dtype: torch.dtype = FP32, layout: str = "contiguous", dims: int = 1
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of an operator, and of its gradient operator."""
    norm = norm_of(form, SHAPE[-dims:], dtype)
    x = LAYOUTS[layout](SHAPE, dtype, 0)
    forward = (x, norm.weight, norm.bias, EPS, dims, form.name, "auto")
    y, *statistics = operator_of(kind)(*forward)
    dy = normal(*SHAPE, dtype=y.dtype, seed=2)
    if kind == "norm":
        return forward, (dy, y, *statistics, norm.weight, norm.bias, dims, dtype, [True] * 3, form.name, "auto")
    mean, reciprocal = statistics
    kept = (x, mean if form.centred else None, reciprocal)
    return forward, (dy, *kept, norm.weight, norm.bias, dims, [True] * 3, form.name, "auto")


@each_kind
@each_of_three
def test_an_operator_calls_the_backend_that_is_named(
    form: NormForm, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = arguments_of(kind, form)
    spies = {backend: Mock(wraps=eager) for backend in ("eager", "compile")}
    monkeypatch.setattr(operators, "implementation", spies.__getitem__)
    for name, (*others, _) in zip((kind, f"{kind}_backward"), arguments, strict=True):
        operator_of(name)(*others, "compile")
    assert [call[0] for call in spies["compile"].mock_calls] == [
        kind.replace("norm", name) for name in ("forward", "backward")
    ]
    assert spies["eager"].mock_calls == []


@pytest.mark.parametrize("dtype", [FP32, BF16, FP64], ids=dtype_name)
@each_kind
@each_form
def test_schema_and_fake_results(form: NormForm, kind: str, dtype: torch.dtype) -> None:
    for name, arguments in zip((kind, f"{kind}_backward"), arguments_of(kind, form, dtype), strict=True):
        opcheck(operator_of(name), arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@each_kind
@each_of_three
def test_fake_results_of_every_layout(form: NormForm, kind: str, layout: str, dims: int) -> None:
    for name, arguments in zip((kind, f"{kind}_backward"), arguments_of(kind, form, FP32, layout, dims), strict=True):
        opcheck(operator_of(name), arguments, test_utils=("test_schema", "test_faketensor"))


@each_kind
@each_of_three
def test_derivatives_and_compilation(form: NormForm, kind: str) -> None:
    forward, backward = arguments_of(kind, form, FP64)
    leaves = [each.detach().requires_grad_() if isinstance(each, Tensor) else each for each in forward]
    opcheck(operator_of(kind), tuple(leaves))
    opcheck(operator_of(f"{kind}_backward"), backward)


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], Tensor, list[Tensor]], Any]] = {
    "grad": lambda f, x, w: grad(lambda *all: f(*all).square().sum(), tuple(range(1 + len(w))))(x, *w),
    "vmap": lambda f, x, w: vmap(lambda x: f(x, *w))(x),
    "vmap-second-dimension": lambda f, x, w: vmap(lambda x: f(x, *w), in_dims=1)(x),
    "gradients-of-samples": lambda f, x, w: vmap(
        grad(lambda *all: f(*all).square().sum(), tuple(range(1 + len(w)))), (0, *[None] * len(w))
    )(x, *w),
    "jacobian": lambda f, x, w: jacrev(lambda x: f(x, *w))(x),
    "weights-of-samples": lambda f, x, w: vmap(f, (None, *[0] * len(w)))(x, *(each.expand(2, -1) for each in w)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_norm_saving
@each_of_three
def test_transforms_as_the_native_function(form: NormForm, saving: NormSaving, transform: str) -> None:
    norm, x = norm_of(form, (6,), FP32), normal(3, 4, 6)
    found, native = (TRANSFORMS[transform](f, x, norm.parameters) for f in (norm.ours(saving), norm.native))
    torch.testing.assert_close(found, native, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [LLAMA, LAYER_NORM], ids=lambda form: form.name)
@each_norm_saving
def test_a_second_derivative_is_refused(form: NormForm, saving: NormSaving) -> None:
    norm, x = norm_of(form, (6,), FP32), normal(4, 6).requires_grad_()
    y = norm.ours(saving)(x, *norm.parameters)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    label = {"output": "an inverted norm", "input": "a norm that keeps its input"}[saving]
    with pytest.raises(NotImplementedError, match=f"^{label} has no second derivative.*unpatch_model"):
        dx.square().sum().backward()
