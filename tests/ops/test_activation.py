"""Inverted activations: what they save, and that they compose with what PyTorch does to a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_invact.curves import GELU, Curve
from hf_invact.ops import invert
from hf_invact.ops.bits import packed_size
from hf_invact.ops.operators import activation as operators
from tests.helpers import (
    FOUR_DIMENSIONS,
    Case,
    assert_gradient_within,
    contiguous_copies,
    each_case,
    each_curve,
    each_dtype,
    each_layout,
    each_operation,
    error_bar,
    normal,
    output_and_gradient,
    record_saved,
)


def inverted(curve: Curve) -> Callable[[Tensor], Tensor]:
    return lambda x: invert(x, curve)


@each_case
def test_matches_the_native_function(case: Case) -> None:
    x = case.input()
    dy = Case(case.curve, case.dtype, case.shape).input(seed=1)
    _, native_derivative = output_and_gradient(case.curve.forward, x.double())
    y, dx = output_and_gradient(inverted(case.curve), x, dy)
    assert torch.equal(y, case.curve.forward(x))
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert_gradient_within(error_bar(case.curve, case.dtype), dx, dy, native_derivative)


@each_curve
def test_gradcheck(curve: Curve) -> None:
    x = normal(5, 7, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(inverted(curve), (x,), atol=2e-6, rtol=0)


@each_layout
@each_operation
def test_gradient_of_a_sum(curve: Curve, layout: str) -> None:
    """The gradient of a sum is one number, expanded to the output's shape."""
    x = Case(curve, torch.float32, FOUR_DIMENSIONS, layout).input().requires_grad_()
    invert(x, curve).sum().backward()
    _, expected = output_and_gradient(inverted(curve), x)
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("name", ["unknown", "cuda"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_an_unknown_backend_is_refused(name: str, requires_grad: bool) -> None:
    with pytest.raises(ValueError, match=f"unknown backend '{name}'.*auto, eager"):
        invert(torch.ones(3, requires_grad=requires_grad), GELU, name)


@each_case
def test_keeps_its_own_output_and_one_bit_per_element_where_the_curve_turns(case: Case) -> None:
    x = case.input().requires_grad_()
    with record_saved() as saved:
        y = invert(x, case.curve)
    output, *sides = saved
    assert output.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()
    assert (output.shape, output.stride(), output.storage_offset()) == (y.shape, y.stride(), y.storage_offset())
    assert y.untyped_storage().nbytes() == x.numel() * x.element_size()
    bits = [packed_size(x.numel())] if case.curve.x_min is not None else []
    assert [side.untyped_storage().nbytes() for side in sides] == bits


@each_dtype
@each_curve
def test_is_the_native_function_without_a_gradient(
    curve: Curve, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    implementation = Mock()
    monkeypatch.setattr(operators, "implementation", implementation)
    x = normal(100, dtype=dtype)
    with record_saved() as saved:
        outputs = [invert(x, curve)]
        with torch.no_grad():
            outputs.append(invert(x.clone().requires_grad_(), curve))
        with torch.inference_mode():
            outputs.append(invert(x, curve).clone())
    assert saved == []
    assert implementation.mock_calls == []
    for y in outputs:
        assert not y.requires_grad
        assert torch.equal(y, curve.forward(x))


@each_curve
def test_the_input_may_change_before_backward(curve: Curve) -> None:
    x = normal(100)
    _, expected = output_and_gradient(inverted(curve), x)
    leaf = x.clone().requires_grad_()
    hidden = leaf.clone()
    y = invert(hidden, curve)
    hidden.detach().fill_(torch.nan)
    y.sum().backward()
    assert torch.equal(leaf.grad, expected)


def test_a_change_of_the_output_before_backward_is_an_error() -> None:
    y = invert(normal(100).requires_grad_(), GELU)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, contiguous_copies])
@each_layout
@each_operation
def test_hooks_on_saved_tensors(curve: Curve, layout: str, hooks: Callable[[], AbstractContextManager[Any]]) -> None:
    x = Case(curve, torch.float32, FOUR_DIMENSIONS, layout).input()
    results = output_and_gradient(inverted(curve), x)
    with hooks():
        hooked = output_and_gradient(inverted(curve), x)
    assert all(map(torch.equal, hooked, results))


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@each_layout
@each_operation
def test_checkpoint(curve: Curve, layout: str, use_reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        return invert(2 * x, curve) * 3

    x = Case(curve, torch.float32, FOUR_DIMENSIONS, layout).input()
    y, dx = output_and_gradient(block, x)
    leaf = x.detach().requires_grad_()
    recomputed = checkpoint(block, leaf, use_reentrant=use_reentrant)
    recomputed.backward(torch.ones_like(recomputed))
    assert torch.equal(recomputed, y)
    assert torch.equal(leaf.grad, dx)


@each_dtype
@each_curve
def test_backward_twice_gives_the_same(curve: Curve, dtype: torch.dtype) -> None:
    x = normal(1000, dtype=dtype).requires_grad_()
    y = invert(x, curve)
    before = y.detach().clone()
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)
    assert torch.equal(y, before)


def test_the_output_is_shared_with_the_next_layer() -> None:
    """A linear layer after the activation saves the same storage: this is where memory is saved."""
    x, weight = normal(16, 8).requires_grad_(), normal(4, 8).requires_grad_()
    with record_saved() as saved:
        torch.nn.functional.linear(invert(x, GELU), weight)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    storages.pop(weight.untyped_storage().data_ptr(), None)
    assert sum(storages.values()) == 16 * 8 * 4 + 16 * 8 // 8
