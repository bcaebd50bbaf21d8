"""The compiled masks of adapters' inputs against the eager backend, and PyTorch's own function, bit for bit."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch

from hf_invact.ops import adapter_input
from hf_invact.ops.dropout import scales_of
from hf_invact.ops.eager import adapter as eager
from hf_invact.ops.inductor import adapter as inductor
from hf_invact.ops.inductor import compiler
from tests.helpers import FOUR_DIMENSIONS, LAYOUTS, dtype_name, normal
from tests.ops.adapters import Run, assert_same_bits, pefts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]
PIECE, LARGE_PIECE = 128, 512
SIZES = (9, PIECE, LARGE_PIECE + PIECE + 3)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
PAIRS = [(FP32, FP32), (BF16, FP32), (BF16, BF16), (FP16, FP16), (FP32, FP64)]
each_pair = pytest.mark.parametrize(("of_x", "dtype"), PAIRS, ids=dtype_name)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CPU_PIECES", (LARGE_PIECE, PIECE))


@each_pair
def test_as_the_eager_backend(of_x: torch.dtype, dtype: torch.dtype) -> None:
    p = 0.3
    scale, _ = scales_of(p, dtype, CPU)
    for size in SIZES:
        x, dx = normal(size, dtype=of_x), normal(size, dtype=dtype, seed=1)
        x[::3] = torch.tensor([torch.nan, torch.inf, -0.0]).repeat(size)[: len(x[::3])]
        found, expected = (backend.drop(x, dtype, p, torch.Generator().manual_seed(2)) for backend in (inductor, eager))
        kept = expected[1]
        found += *inductor.both_masked(x, dx.clone(), kept, scale, scale), inductor.masked(x, kept, dtype, scale)
        expected += *eager.both_masked(x, dx.clone(), kept, scale, scale), eager.masked(x, kept, dtype, scale)
        names = ("dropped", "kept", "masked", "gradient", "masked alone")
        assert_same_bits(dict(zip(names, found, strict=True)), dict(zip(names, expected, strict=True)), size)


def test_two_scales() -> None:
    x, dx = normal(PIECE, dtype=BF16), normal(PIECE, seed=1)
    _, kept = eager.drop(x, FP32, 0.3, None)
    found, expected = (backend.both_masked(x, dx.clone(), kept, 1.5, 2.0) for backend in (inductor, eager))
    assert all(map(torch.equal, found, expected))


def test_a_scale_beyond_the_largest_number() -> None:
    x = torch.ones(LARGE_PIECE, dtype=FP16)
    found, expected = (backend.drop(x, FP16, 0.99999, None)[0] for backend in (inductor, eager))
    assert torch.equal(found, expected)
    assert not found.isnan().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_bit_is_pytorchs(layout: str) -> None:
    x, run = LAYOUTS[layout](FOUR_DIMENSIONS, BF16, 0), Run(FP32, 0.3)
    assert_same_bits(run.of(partial(adapter_input, backend="compile"), x), run.of(pefts, x))
