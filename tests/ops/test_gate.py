"""Gates: their output and gradients, and that they compose with what PyTorch does to a graph."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_invact.curves import GELU, SILU, Curve
from hf_invact.ops import SAVINGS, Saving, gate
from tests.helpers import (
    FOUR_DIMENSIONS,
    HALF_DTYPES,
    LAYOUTS,
    TINY,
    all_numbers,
    assert_gradient_within,
    contiguous_copies,
    each_curve,
    each_dtype,
    each_layout,
    each_operation,
    each_saving,
    each_shape,
    error_bar,
    exact_derivative,
    inverted_gate,
    native_gate,
    normal,
    output_and_gradients,
    record_saved,
)

# Of gate and up: each layout with a contiguous one, with itself, and with the half of a fused projection.
PAIRS_OF_LAYOUTS = sorted(
    {(of_gate, of_up) for of_gate in LAYOUTS for of_up in ("contiguous", of_gate, "half_of_a_row")}
    | {("contiguous", of_up) for of_up in LAYOUTS}
)
# A rounded product costs more digits next to the turning point than a rounded output (measured: up to 2.5 times).
MAX_ERROR_RATIO = 2.6


def values(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Gates and ups: random ones, and a selection of all numbers, each combined with a few others."""
    few = torch.tensor([0.0, -0.0, -0.3, 7.0, *(TINY * k for k in (0.4, -0.9, 1.0, -1.1))], dtype=dtype)
    numbers = all_numbers(dtype if dtype in HALF_DTYPES else torch.bfloat16).to(dtype)[::9]
    some, others = torch.cartesian_prod(numbers[numbers.isfinite()], few).T
    a, u = 1.5 * normal(20_000, dtype=dtype), normal(20_000, dtype=dtype, seed=1)
    return torch.cat([a, some, others]), torch.cat([u, others, some])


@each_dtype
@each_curve
def test_output_is_the_native_product_unless_up_is_nearly_zero(curve: Curve, dtype: torch.dtype) -> None:
    a, u = values(dtype)
    f, expected = curve.forward(a), curve.forward(a) * u
    y, exact = (inverted_gate(curve, saving)(a.clone().requires_grad_(), u).detach() for saving in SAVINGS)
    torch.testing.assert_close(exact, expected, rtol=0, atol=0, equal_nan=True)
    tells = u.abs() >= TINY  # always, in float16
    torch.testing.assert_close(y[tells], expected[tells], rtol=0, atol=0, equal_nan=True)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    difference, bound = (y - expected).double().abs(), TINY * f.double().abs() + smallest
    assert (difference <= bound)[~tells & f.isfinite()].all()


def check_against_float64(a: Tensor, u: Tensor, dy: Tensor, saving: Saving) -> None:
    """Check the output and both gradients, and their shapes, dtypes and layouts."""
    y, da, du = output_and_gradients(inverted_gate(SILU, saving), a, u, dy=dy)
    expected = native_gate(SILU)(a, u)
    assert (y.shape, y.dtype, y.stride()) == (expected.shape, expected.dtype, expected.stride())
    tells = u.abs() >= TINY
    assert torch.equal(y[tells], expected[tells])
    bar = error_bar(SILU, a.dtype)
    bar = replace(bar, max=MAX_ERROR_RATIO * bar.max)
    assert_gradient_within(bar, da, dy.double() * u.double(), exact_derivative(SILU, a))
    eps = torch.finfo(u.dtype).eps
    torch.testing.assert_close(du.double(), dy.double() * SILU.forward(a.double()), rtol=4 * eps, atol=eps)


@each_saving
@each_dtype
@each_shape
def test_shapes(shape: tuple[int, ...], dtype: torch.dtype, saving: Saving) -> None:
    check_against_float64(*(normal(*shape, dtype=dtype, seed=seed) for seed in range(3)), saving)


@each_saving
@pytest.mark.parametrize(("of_gate", "of_up"), PAIRS_OF_LAYOUTS, ids=map("-".join, PAIRS_OF_LAYOUTS))
def test_layouts(of_gate: str, of_up: str, saving: Saving) -> None:
    layouts = enumerate((of_gate, of_up, "transposed"))
    tensors = [LAYOUTS[layout](FOUR_DIMENSIONS, torch.bfloat16, seed) for seed, layout in layouts]
    check_against_float64(*tensors, saving)


@each_saving
@each_dtype
def test_halves_of_a_fused_projection(dtype: torch.dtype, saving: Saving) -> None:
    def block(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(*x.chunk(2, dim=-1))

    x = normal(5, 3, 2 * 64, dtype=dtype)
    (y, dx), (expected, native_dx) = (
        output_and_gradients(block(function), x) for function in (inverted_gate(SILU, saving), native_gate(SILU))
    )
    tells = x.chunk(2, dim=-1)[1].abs() >= TINY
    assert torch.equal(y[tells], expected[tells])
    if saving == "inputs":
        assert torch.equal(dx, native_dx)
    largest = MAX_ERROR_RATIO * error_bar(SILU, dtype).max * x.abs().max().item()
    torch.testing.assert_close(dx, native_dx, rtol=4 * torch.finfo(dtype).eps, atol=largest)


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, contiguous_copies])
@each_saving
@each_layout
def test_hooks_on_saved_tensors(layout: str, saving: Saving, hooks: Callable[[], AbstractContextManager[Any]]) -> None:
    a, u = (LAYOUTS[layout](FOUR_DIMENSIONS, torch.float32, seed) for seed in range(2))
    results = output_and_gradients(inverted_gate(GELU, saving), a, u)
    with hooks():
        hooked = output_and_gradients(inverted_gate(GELU, saving), a, u)
    assert all(map(torch.equal, hooked, results))


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@each_saving
@each_operation
def test_checkpoint(curve: Curve, saving: Saving, use_reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        return gate(*(2 * x).chunk(2, dim=-1), curve, saving) * 3

    x = normal(6, 22)
    y, dx = output_and_gradients(block, x)
    leaf = x.requires_grad_()
    recomputed = checkpoint(block, leaf, use_reentrant=use_reentrant)
    recomputed.sum().backward()
    assert torch.equal(recomputed, y)
    assert torch.equal(leaf.grad, dx)


@each_saving
@each_dtype
@each_curve
def test_backward_twice_gives_the_same(curve: Curve, dtype: torch.dtype, saving: Saving) -> None:
    a, u = normal(1000, dtype=dtype).requires_grad_(), normal(1000, dtype=dtype, seed=1).requires_grad_()
    y = gate(a, u, curve, saving)
    before = [tensor.detach().clone() for tensor in (y, a, u)]
    first = torch.autograd.grad(y.sum(), (a, u), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (a, u))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, (y, a, u), before))


@each_saving
@each_operation
def test_one_input_alone_may_need_a_gradient(curve: Curve, saving: Saving) -> None:
    a, u = normal(100), normal(100, seed=1)
    _, da, du = output_and_gradients(inverted_gate(curve, saving), a, u)
    assert torch.equal(output_and_gradients(lambda leaf: gate(leaf, u, curve, saving), a)[1], da)
    assert torch.equal(output_and_gradients(lambda leaf: gate(a, leaf, curve, saving), u)[1], du)


@each_saving
@each_curve
def test_is_the_native_product_without_a_gradient(curve: Curve, saving: Saving) -> None:
    a, u = normal(100), torch.zeros(100)
    with record_saved() as saved:
        outputs = [gate(a, u, curve, saving)]
        with torch.no_grad():
            outputs.append(gate(a.clone().requires_grad_(), u, curve, saving))
    assert saved == []
    for y in outputs:
        assert not y.requires_grad
        assert (y == 0).all()


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    ("up", "options", "message"),
    [
        (torch.ones(3), {"saving": "product"}, "saving must be one of 'output', 'inputs', got 'product'"),
        (torch.ones(3), {"backend": "cuda"}, "unknown backend 'cuda'; known: auto, eager"),
        (torch.ones(1), {}, "one shape and dtype, got (3,), torch.float32 and (1,), torch.float32"),
        (torch.ones(3).double(), {}, "one shape and dtype, got (3,), torch.float32 and (3,), torch.float64"),
    ],
    ids=["saving", "backend", "shape", "dtype"],
)
def test_refuses_with_what_came(up: Tensor, options: dict[str, Any], message: str, requires_grad: bool) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        gate(torch.ones(3, requires_grad=requires_grad), up, GELU, **options)
