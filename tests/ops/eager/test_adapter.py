"""Masks of adapters' inputs in plain PyTorch: packed, applied, and as the kernels of GPUs compute them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_invact.ops import buffers, dropout
from hf_invact.ops.bits import packed_size
from hf_invact.ops.dropout import scales_of
from hf_invact.ops.eager import adapter as eager
from tests.helpers import DTYPES, FOUR_DIMENSIONS, SMALL_PIECE, each_dtype, each_layout, normal
from tests.ops.adapters import LAYOUTS

CPU = torch.device("cpu")
SIZES = (1, 7, 8, 9, SMALL_PIECE - 1, SMALL_PIECE, SMALL_PIECE + 1, 3 * SMALL_PIECE + 5)
P = 0.3


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "CPU_PIECE", SMALL_PIECE)


def bits_of(kept: Tensor, like: Tensor) -> Tensor:
    """Which elements of a dense tensor are kept, one by one."""
    flags = [bool(byte >> bit & 1) for byte in kept.tolist() for bit in range(8)]
    assert not any(flags[like.numel() :])
    return torch.tensor(flags[: like.numel()]).as_strided(like.size(), like.stride())


@pytest.mark.parametrize("size", SIZES)
@each_dtype
def test_elements_that_are_dropped_have_a_zero_bit(dtype: torch.dtype, size: int) -> None:
    x = normal(size, dtype=dtype) + 10
    dropped, kept = eager.drop(x, dtype, P, torch.Generator().manual_seed(0))
    assert kept.shape == (packed_size(size),)
    assert torch.equal(bits_of(kept, dropped), dropped != 0)


@each_layout
@each_dtype
def test_a_mask_is_applied_again(dtype: torch.dtype, layout: str) -> None:
    x, dx = (LAYOUTS[layout](FOUR_DIMENSIONS, torch.bfloat16, seed) for seed in range(2))
    dropped, kept = eager.drop(x, dtype, P, None)
    scale, _ = scales_of(P, dtype, CPU)
    assert torch.equal(eager.masked(x, kept, dtype, scale), dropped)
    dense = torch.empty_like(x, dtype=dtype).copy_(dx)
    expected = eager.masked(dense, kept, dtype, scale), eager.masked(dense, kept, dtype, 2.0)
    for number, dx_scale in enumerate((scale, 2.0)):
        again, gradient = eager.both_masked(x, dense.clone(), kept, scale, dx_scale)
        assert torch.equal(again, dropped)
        assert torch.equal(gradient, expected[number])
        assert again.stride() == gradient.stride() == dense.stride()


def test_a_scale_beyond_the_largest_number() -> None:
    """In float16 what is kept becomes infinite, and what is dropped is 0."""
    scale, _ = scales_of(0.99999, torch.float16, CPU)
    kept = torch.tensor([0b00000101], dtype=torch.uint8)
    result = eager.masked(torch.ones(4, dtype=torch.float16), kept, torch.float16, scale)
    assert result.tolist() == [torch.inf, 0.0, torch.inf, 0.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_one_kernel_computes_it(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch has that function on a CPU, too: there it rounds the scale as for the gradient."""
    monkeypatch.setattr(dropout, "FUSED_DEVICES", ("cpu",))
    dropout._scales.cache_clear()
    x = normal(3 * SMALL_PIECE + 5, dtype=dtype)
    torch.manual_seed(4)
    dropped, kept = eager.drop(x, dtype, P, None)
    torch.manual_seed(4)
    expected, mask = torch.native_dropout(x, P, True)
    assert torch.equal(dropped, expected)
    assert torch.equal(bits_of(kept, x), mask)
    assert not dropout.is_fused(x, torch.Generator())
    scale = scales_of(P, dtype, CPU).backward
    gradient = torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - P))
    found = eager.masked(x.to(buffers.compute_dtype(x)), kept, buffers.compute_dtype(x), scale).to(dtype)
    assert torch.equal(found, gradient)


@pytest.mark.parametrize("p", [0.05, 0.15, 0.3])
def test_scales_of_one_kernel(p: float) -> None:
    """The forward pass divides by a rounded probability, and the gradient is multiplied by a quotient."""
    forward, backward = dropout._scales(p, torch.bfloat16, True)
    assert torch.tensor(forward) == 1 / torch.tensor(1 - p)
    assert torch.tensor(backward) == torch.tensor(1 / (1 - p))
    assert (torch.tensor(forward) != torch.tensor(backward)) == (p == 0.15)
    assert dropout._scales(p, torch.float64, True) == (1 / (1 - p), 1 / (1 - p))


@each_dtype
def test_scales_elsewhere_are_numbers_of_the_dtype(dtype: torch.dtype) -> None:
    scales = scales_of(0.15, dtype, CPU)
    expected = torch.ones((), dtype=dtype).div_(0.85).item()
    assert scales == (expected, expected)
