"""Lookup tables for large tensors on a CPU: the formula's values in half precision, lines near them in float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_invact.curves import GELU, SILU, Curve, clipped_gelu, softplus
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.eager import derivative, lookup, tables
from hf_invact.ops.eager.derivative import derivative_of_output
from hf_invact.ops.eager.formula import evaluator
from tests.helpers import all_numbers, each_curve, each_fitted, each_half_dtype, normal


@each_half_dtype
@each_curve
def test_a_lookup_equals_the_formula(curve: Curve, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([all_numbers(dtype), normal(10_000, dtype=dtype)])
    y, side = eager.forward(x, curve)
    dy = normal(x.numel(), dtype=dtype, seed=1)
    evaluated = eager.backward(dy, y, side, curve)
    monkeypatch.setattr(derivative, "TABLE_FROM", 1)
    looked_up = eager.backward(dy, y, side, curve)
    assert torch.equal(looked_up.isnan(), evaluated.isnan())
    assert torch.equal(looked_up.nan_to_num(), evaluated.nan_to_num())


@each_fitted
def test_lines_follow_the_formula(curve: Curve, monkeypatch: pytest.MonkeyPatch) -> None:
    far = torch.tensor([-1e30, -200.0, -90.0, -13.0, -0.0, 0.0, 50.0, 1e4, 1e30])
    near = curve.x_min + torch.cat([normal(20_000) * scale for scale in (1e-7, 1e-5, 1e-3, 1e-1)])
    x = torch.cat([normal(100_000) * 3, near, far])
    y, side = eager.forward(x, curve)
    evaluated = eager.backward(torch.ones_like(y), y, side, curve)
    monkeypatch.setattr(derivative, "TABLE_FROM", 1)
    looked_up = eager.backward(torch.ones_like(y), y, side, curve)
    assert not torch.equal(looked_up, evaluated)
    distance = (looked_up - evaluated).abs()
    if curve.scale == 1:
        assert distance.max() < 5e-7
    else:  # the formula of a scaled curve rounds once more, which matters next to its turning point
        assert distance.max() < 4e-5
        assert distance[(x - curve.x_min).abs() > 0.01].max() < 1.5e-6


@each_fitted
def test_lines_give_each_number_next_to_the_turning_point_its_own_value(curve: Curve) -> None:
    start = torch.tensor(tables.lowest(curve))
    y = (start.view(torch.int32) - torch.arange(1, 201, dtype=torch.int32)).view(torch.float32)
    error = torch.tensor(curve.output_error(torch.float32) / curve.scale, dtype=torch.float64)
    evaluate, look_up = evaluator(curve, y.double()), lookup.lookup(curve, torch.float32)
    for is_left in (False, True):
        exact = evaluate(y.double(), torch.full(y.shape, is_left), error)
        looked_up = look_up(y, torch.full([25], 255 * is_left, dtype=torch.uint8))
        assert (looked_up - exact).abs().max() < 1e-7


@each_fitted
def test_the_slope_is_zero_left_of_where_the_output_vanishes(curve: Curve) -> None:
    y, left = torch.tensor([-0.0, -1e-30]), torch.tensor([255], dtype=torch.uint8)
    assert lookup.lookup(curve, torch.float32)(y, left).tolist() == [0.0, 0.0]


def test_lines_end_at_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivative, "TABLE_FROM", 1)
    x = torch.tensor([9.0, 9.999, 10.0, 11.0, 1e30])
    curve = clipped_gelu(-10.0, 10.0)
    y, side = eager.forward(x, curve)
    torch.testing.assert_close(eager.backward(torch.ones(5), y, side, curve), torch.tensor([1.0, 1, 0, 0, 0]))


@pytest.mark.parametrize("is_left", [False, True], ids=["right", "left"])
def test_lines_give_nan_for_what_is_not_a_number(is_left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derivative, "TABLE_FROM", 1)
    y, side = torch.tensor([torch.inf, torch.nan]), torch.tensor([255 * is_left], dtype=torch.uint8)
    assert eager.backward(torch.ones(2), y, side, GELU).isnan().all()


@each_half_dtype
@each_curve
def test_a_lookup_for_gates_equals_the_formula(
    curve: Curve, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    ups = torch.tensor([1.0, -1.15, 1.99, 3e-5, 0.0, -700.0, torch.inf], dtype=dtype)
    gate, up = torch.cartesian_prod(all_numbers(dtype), ups).T
    dy = normal(gate.numel(), dtype=dtype)
    product, side = eager.gate_forward(gate, up, curve)
    monkeypatch.setattr(derivative, "TABLE_FROM", gate.numel() + 1)
    evaluated = eager.gate_backward(dy, product, up, side, curve)
    monkeypatch.setattr(derivative, "TABLE_FROM", 1)
    for looked_up, expected in zip(eager.gate_backward(dy, product, up, side, curve), evaluated, strict=True):
        assert torch.equal(looked_up.isnan(), expected.isnan())
        assert torch.equal(looked_up.nan_to_num(), expected.nan_to_num())


def test_only_real_and_large_tensors_of_up_to_32_bits_are_looked_up() -> None:
    def is_looked_up(y: torch.Tensor, curve: Curve = GELU) -> bool:
        return derivative_of_output(curve, y).__module__ == lookup.__name__

    large = torch.empty(derivative.TABLE_FROM, dtype=torch.bfloat16)
    assert is_looked_up(large)
    assert is_looked_up(large.float())
    assert not is_looked_up(large[1:])
    assert not is_looked_up(large.double())
    assert not is_looked_up(large.float(), softplus())  # evaluating its formula costs less
    with FakeTensorMode():
        assert not is_looked_up(torch.empty(derivative.TABLE_FROM, dtype=torch.bfloat16))


def test_each_thread_looks_up_in_buffers_of_its_own() -> None:
    y, side = torch.linspace(0, 1, 1000), torch.zeros(125, dtype=torch.uint8)
    look_up = lookup.lookup(GELU, torch.float32)
    with ThreadPoolExecutor(max_workers=1) as other:
        mine = look_up(y, side)
        theirs = other.submit(look_up, -0.1 * y, side).result()
        assert mine.data_ptr() != theirs.data_ptr()
        assert look_up(y, side).data_ptr() == mine.data_ptr()


def test_few_lines_suffice_for_silu() -> None:
    assert tables.line_table(SILU).values.shape == (2, 2 * tables.FEWEST_CELLS)


def test_a_curve_that_lines_do_not_follow_closely_is_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.empty(derivative.TABLE_FROM)
    assert derivative_of_output(GELU, y).__module__ == lookup.__name__
    monkeypatch.setattr(tables, "MOST_CELLS", tables.FEWEST_CELLS)
    assert derivative_of_output(SILU, y).__module__ == lookup.__name__
    assert derivative_of_output(GELU, y).__module__ != lookup.__name__
