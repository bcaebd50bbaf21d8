"""Large half-precision tensors on a CPU are looked up: the same numbers as the formula's, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hf_invact.curves import GELU, SILU, Curve
from hf_invact.ops import BACKENDS, slopes
from hf_invact.ops.slopes import slopes_of
from tests.helpers import all_numbers, each_curve, each_half_dtype, normal


@each_half_dtype
@each_curve
def test_a_look_up_gives_what_the_formula_gives(
    curve: Curve, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.cat([all_numbers(dtype), normal(10_000, dtype=dtype)])
    backend = BACKENDS["eager"]
    y, side = backend.forward(x, curve)
    dy = normal(x.numel(), dtype=dtype, seed=1)
    evaluated = backend.backward(dy, y, side, curve)
    monkeypatch.setattr(slopes, "TABLE_FROM", 1)
    looked_up = backend.backward(dy, y, side, curve)
    assert torch.equal(looked_up.isnan(), evaluated.isnan())
    assert torch.equal(looked_up.nan_to_num(), evaluated.nan_to_num())


@each_half_dtype
def test_gates_are_not_looked_up(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their outputs are rebuilt, and mostly between two numbers of the dtype."""
    gate, up, dy = (normal(5000, dtype=dtype, seed=seed) for seed in range(3))
    backend = BACKENDS["eager"]
    product, side = backend.gate_forward(gate, up, SILU)
    expected = backend.gate_backward(dy, product, up, side, SILU)
    monkeypatch.setattr(slopes, "TABLE_FROM", 1)
    assert all(map(torch.equal, backend.gate_backward(dy, product, up, side, SILU), expected))


def test_only_real_and_large_half_precision_tensors_are_looked_up() -> None:
    def is_looked_up(y: torch.Tensor) -> bool:
        return "looked_up" in slopes_of(GELU, y).__qualname__

    large = torch.empty(slopes.TABLE_FROM, dtype=torch.bfloat16)
    assert is_looked_up(large)
    assert not is_looked_up(large[1:])
    assert not is_looked_up(large.float())
    with FakeTensorMode():
        assert not is_looked_up(torch.empty(slopes.TABLE_FROM, dtype=torch.bfloat16))
