"""What the input of an adapter saves for backward under autocast, and that its gradients stay those of PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import dropout, linear

from hf_invact.ops import adapter_input
from hf_invact.ops.bits import packed_size
from tests.helpers import normal, record_saved


def native(x: Tensor, weight: Tensor, dtype: torch.dtype, p: float) -> Tensor:
    return linear(dropout(x.to(dtype), p), weight)


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("autocast_dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_keeps_its_input_the_weight_itself_and_bits(autocast_dtype: torch.dtype, p: float) -> None:
    found = []
    for function in (native, adapter_input):
        x = normal(5, 48, dtype=torch.bfloat16).requires_grad_()
        weight = normal(3, 48, seed=1).requires_grad_()
        torch.manual_seed(0)
        with torch.autocast("cpu", autocast_dtype), record_saved() as saved:
            y = function(x, weight, torch.float32, p)
        y.square().sum().backward()
        found.append((y, x.grad, weight.grad))
    assert {tensor.untyped_storage().data_ptr() for tensor in saved[:2]} == {x.data_ptr(), weight.data_ptr()}
    assert [tensor.nbytes for tensor in saved[2:]] == ([packed_size(x.numel())] if p else [])
    for native_one, own in zip(*found, strict=True):
        assert native_one.dtype == own.dtype
        assert torch.equal(native_one, own)
