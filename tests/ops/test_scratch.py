"""Memory for pieces: what is converted there, what is written to, and the products that are rounded once."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_invact.curves import RELU2, SILU, Curve
from hf_invact.ops.eager import activation as eager
from hf_invact.ops.scratch import Scratch, multiply
from tests.helpers import DTYPES, SMALL_PIECE, dtype_name, each_dtype, each_half_dtype, normal

CPU = torch.device("cpu")
each_gradient_dtype = pytest.mark.parametrize(
    "gradient_dtype", DTYPES, ids=lambda dtype: f"gradient_{dtype_name(dtype)}"
)
each_curve = pytest.mark.parametrize("curve", [SILU, RELU2], ids=lambda curve: curve.name)


@each_half_dtype
def test_what_is_narrower_is_converted_in_a_buffer_that_is_used_again(dtype: torch.dtype) -> None:
    scratch, first, longer = Scratch(torch.float32, CPU), normal(8, dtype=dtype), normal(9, dtype=dtype, seed=1)
    places = []
    for piece in (first, first[:5], longer, first):
        wide = scratch.wide("factor", piece)
        assert wide.dtype == torch.float32
        assert torch.equal(wide, piece.float())
        places.append(wide.data_ptr())
    assert places[0] == places[1]
    assert places[2] == places[3]
    assert scratch.empty("other", 3).data_ptr() not in places


def test_what_is_not_narrower_is_not_copied() -> None:
    scratch = Scratch(torch.float32, CPU)
    for dtype in (torch.float32, torch.float64):
        piece = normal(8, dtype=dtype)
        assert scratch.wide("factor", piece) is piece


@pytest.mark.parametrize(
    ("dtype", "wide"), itertools.product(DTYPES, (torch.float32, torch.float64)), ids=lambda dtype: dtype_name(dtype)
)
def test_a_product_is_rounded_once(dtype: torch.dtype, wide: torch.dtype) -> None:
    a, b = (normal(1_000, dtype=wide, seed=seed) for seed in range(2))
    out = torch.full((1_000,), torch.nan, dtype=dtype)
    before, product = a.clone(), a * b
    multiply(a, b, out=out)
    assert torch.equal(out, product.to(dtype))
    assert torch.equal(a, before)


@each_gradient_dtype
@each_dtype
@each_curve
def test_a_backward_pass_writes_to_none_of_its_arguments(
    curve: Curve, dtype: torch.dtype, gradient_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eager, "CPU_PIECE", SMALL_PIECE)
    x, up = (normal(3_001, dtype=dtype, seed=seed) for seed in range(2))
    dy = normal(3_001, dtype=gradient_dtype, seed=2)
    y, side = eager.forward(x, curve)
    product, gate_side = eager.gate_forward(x, up, curve)
    arguments = [dy, y, product, up]
    before = [tensor.clone() for tensor in arguments]
    slope = eager.backward(torch.ones_like(y), y, side, curve)
    dx = eager.backward(dy, y, side, curve)
    eager.gate_backward(dy, product, up, gate_side, curve)
    assert all(map(torch.equal, arguments, before))
    assert dx.dtype == gradient_dtype
    tolerance = 2 * max(torch.finfo(dtype).eps, torch.finfo(gradient_dtype).eps)
    torch.testing.assert_close(dx.double(), dy.double() * slope.double(), rtol=tolerance, atol=1e-7)
