"""Adapters' inputs in the benchmark: all implementations compute the same of one mask, and their bytes are counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from experiments.benchmark.operators import adapters
from experiments.benchmark.operators.adapters import ADAPTER_INPUTS, AdapterInput
from experiments.benchmark.operators.implementations import Implementation

BF16, FP32 = torch.bfloat16, torch.float32
each_operator = pytest.mark.parametrize("operator", ADAPTER_INPUTS, ids=lambda operator: operator.name)
each_dtype = pytest.mark.parametrize("dtype", [BF16, FP32], ids=str)


def tensors(operator: AdapterInput, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
    return operator.tensors((8, 64), dtype, torch.Generator().manual_seed(0))


def prepared(name: str, operator: AdapterInput, dtype: torch.dtype) -> Implementation:
    """Of one mask, with which it is made and which it draws."""
    torch.manual_seed(1)
    options = {"backend_name": "eager"} if name == "inverted" else {}
    dy, inputs = tensors(operator, dtype)
    result: Implementation = getattr(adapters, name)(operator, dy=dy, inputs=inputs, **options)
    return result


@each_operator
@each_dtype
@pytest.mark.parametrize("name", ["native", "inverted"])
def test_directly_and_through_autograd_the_same(name: str, dtype: torch.dtype, operator: AdapterInput) -> None:
    implementation = prepared(name, operator, dtype)
    direct = implementation.calls["backward"]()
    torch.manual_seed(1)
    through_autograd = implementation.calls["autograd"]()
    assert [gradient.dtype for gradient in through_autograd] == [dtype, FP32]
    for ours, theirs in zip(direct, through_autograd, strict=True):
        assert torch.equal(ours.to(theirs.dtype), theirs)


@each_operator
@each_dtype
def test_the_inverted_one_computes_what_the_native_one_does(dtype: torch.dtype, operator: AdapterInput) -> None:
    found = []
    for name in ("native", "inverted"):
        calls = prepared(name, operator, dtype).calls
        torch.manual_seed(2)
        output = calls["forward"]()
        torch.manual_seed(2)
        found.append([output if name == "native" else output[0], *calls["autograd"]()])
    assert found[0][0].dtype == (BF16 if operator.is_autocast else FP32)
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize(
    ("operator", "kind", "forward", "backward"),
    [
        (ADAPTER_INPUTS[0], "inverted", 2 + 1 / 8, 2 + 2 + 1 / 8),
        (ADAPTER_INPUTS[0], "native", 2 + 4 + 8 + 4, 4 + 8 + 4 + 2 + 4),
        (ADAPTER_INPUTS[1], "native", 2 + 4 + 8 + 4 + 2 + 2, 2 + 2 + 4 + 8 + 4 + 2 + 2),
    ],
    ids=["inverted", "native", "native-autocast"],
)
def test_bytes(operator: AdapterInput, kind: str, forward: float, backward: float) -> None:
    traffic, elements = getattr(operator, f"{kind}_traffic"), 1 << 10
    assert traffic.bytes("forward", elements, itemsize=2) == forward * elements
    assert traffic.bytes("backward", elements, itemsize=2) == backward * elements
    assert traffic.bytes("autograd", elements, itemsize=2) == (forward + backward) * elements
