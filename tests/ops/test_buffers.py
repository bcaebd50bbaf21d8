"""Views in memory order, and copies only where the strides differ."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_invact.ops.buffers import flat, with_layout

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
