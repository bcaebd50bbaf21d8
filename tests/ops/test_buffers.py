"""Flat views in memory order, copies where the strides differ, and buffers that are reused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from hf_invact.ops.buffers import Buffers, flat, multiply, with_layout
from tests.helpers import DTYPES, dtype_name, each_half_dtype, normal

CPU = torch.device("cpu")
DENSE = {
    "contiguous": torch.arange(24).view(2, 3, 4),
    "transposed": torch.arange(24).view(4, 3, 2).permute(2, 1, 0),
    "channels_last": torch.arange(24).view(1, 2, 4, 3).permute(0, 3, 1, 2),
    "offset": torch.arange(30)[6:].view(2, 3, 4),
    "scalar": torch.tensor(5),
    "empty": torch.empty(3, 0, 2),
}
each_dense = pytest.mark.parametrize("tensor", DENSE.values(), ids=DENSE)


@each_dense
def test_flat_is_a_view_of_the_whole_tensor_in_memory_order(tensor: Tensor) -> None:
    flattened = flat(tensor)
    assert flattened.shape == (tensor.numel(),)
    assert flattened.is_contiguous()
    assert flattened.data_ptr() == tensor.data_ptr()
    assert torch.equal(flattened, tensor.flatten().sort().values)


@each_dense
def test_with_layout_returns_a_tensor_that_has_the_strides(tensor: Tensor) -> None:
    assert with_layout(tensor, tensor.size(), tensor.stride()) is tensor


def test_with_layout_ignores_strides_that_address_nothing() -> None:
    row = torch.arange(4).view(1, 4)
    assert with_layout(row, row.size(), (99, 1)) is row


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6).view(2, 3), torch.arange(3).expand(2, 3), torch.arange(12).view(2, 6)[:, ::2]],
    ids=["contiguous", "expanded", "strided"],
)
def test_with_layout_copies_into_other_strides(tensor: Tensor) -> None:
    before = tensor.clone()
    result = with_layout(tensor, tensor.size(), (1, 2))
    assert result.stride() == (1, 2)
    assert torch.equal(result, before)
    result.zero_()
    assert torch.equal(tensor, before)


@each_half_dtype
def test_what_is_narrower_is_converted_in_a_buffer_that_is_used_again(dtype: torch.dtype) -> None:
    buffers, first, longer = Buffers(torch.float32, CPU), normal(8, dtype=dtype), normal(9, dtype=dtype, seed=1)
    places = []
    for piece in (first, first[:5], longer, first):
        wide = buffers.widen("factor", piece)
        assert wide.dtype == torch.float32
        assert torch.equal(wide, piece.float())
        places.append(wide.data_ptr())
    assert places[0] == places[1]
    assert places[2] == places[3]
    assert buffers.empty("other", 3).data_ptr() not in places


def test_what_is_not_narrower_is_not_copied() -> None:
    buffers = Buffers(torch.float32, CPU)
    for dtype in (torch.float32, torch.float64):
        piece = normal(8, dtype=dtype)
        assert buffers.widen("factor", piece) is piece


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
