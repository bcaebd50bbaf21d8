"""What norms save for backward, and that saved tensors may be changed, moved and made again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_invact.norms import LLAMA, NormForm
from hf_invact.ops import NormSaving, normalize
from hf_invact.ops.channels import count_kept
from hf_invact.ops.operators import norm as operators
from tests.helpers import contiguous_copies, each_dtype, each_layout, normal, record_saved
from tests.ops.norms import CHANNELS, EPS, SHAPE, each_form, each_norm_saving, each_of_three, input_of, norm_of, run

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def storages(tensors: list[Tensor]) -> dict[int, int]:
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@each_dtype
@each_form
def test_saves_its_output_and_a_few_numbers_per_row(form: NormForm, dtype: torch.dtype) -> None:
    norm, x = norm_of(form, (CHANNELS,), dtype), input_of(dtype=dtype).requires_grad_()
    parameters = [each.requires_grad_() for each in norm.parameters]
    with record_saved() as saved:
        y = norm.ours()(x, *parameters)
    found = storages(saved)
    for each in parameters:
        found.pop(each.untyped_storage().data_ptr(), None)
    big = x if y.dtype == FP16 else y
    assert found.pop(big.untyped_storage().data_ptr()) == big.numel() * big.element_size()
    kept, rows, itemsize = count_kept(CHANNELS, *parameters), x.numel() // CHANNELS, max(4, dtype.itemsize)
    numbers = 1 + form.centred if y.dtype == FP16 else 1 + kept
    indices = 0 if y.dtype == FP16 else 8 * kept
    assert sum(found.values()) == rows * numbers * itemsize + indices


@each_of_three
def test_the_output_is_shared_with_the_next_layer(form: NormForm) -> None:
    norm, weight = norm_of(form, (CHANNELS,), FP32), normal(4, CHANNELS).requires_grad_()
    x = input_of().requires_grad_()
    with record_saved() as saved:
        y = norm.ours()(x, *norm.parameters)
        F.linear(y, weight)
    keeping_y = [each for each in saved if each.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()]
    assert len(keeping_y) == 2
    assert x.untyped_storage().data_ptr() not in storages(saved)


@each_norm_saving
@each_of_three
def test_frozen_parameters_cost_nothing(form: NormForm, saving: NormSaving, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[bool]] = []
    name = "backward" if saving == "output" else "exact_backward"
    function = getattr(operators.eager, name)
    monkeypatch.setattr(
        operators.eager, name, lambda *arguments: (calls.append([*arguments[-1]]), function(*arguments))[1]
    )
    norm, x = norm_of(form, (CHANNELS,), FP32), input_of().requires_grad_()
    norm.ours(saving)(x, *norm.parameters).sum().backward()
    assert calls == [[True, False, False]]
    parameters = [each.requires_grad_() for each in norm.parameters]
    norm.ours(saving)(x.detach(), *parameters).sum().backward()
    assert calls[1:] == [[False, True, len(parameters) == 2]]
    for each, exact in zip(parameters, norm.exact_gradients(x.detach(), torch.ones(SHAPE))[1:], strict=True):
        torch.testing.assert_close(each.grad.double(), exact, rtol=1e-4, atol=1e-4)


def test_a_change_of_the_output_before_backward_is_an_error() -> None:
    y = normalize(normal(3, 8).requires_grad_(), None, None, LLAMA, EPS)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, contiguous_copies])
@each_layout
@each_norm_saving
def test_hooks_on_saved_tensors(
    saving: NormSaving, layout: str, hooks: Callable[[], AbstractContextManager[Any]]
) -> None:
    norm, x = norm_of(LLAMA, (CHANNELS,), FP32), input_of(layout)
    results = run(norm, norm.ours(saving), x)
    with hooks():
        hooked = run(norm, norm.ours(saving), x)
    assert all(map(torch.equal, hooked, results))


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@each_norm_saving
@each_of_three
def test_checkpoint(form: NormForm, saving: NormSaving, use_reentrant: bool) -> None:
    norm, x = norm_of(form, (CHANNELS,), FP32), input_of()
    results = run(norm, norm.ours(saving), x)
    leaves = [each.detach().clone().requires_grad_() for each in (x, *norm.parameters)]
    y = checkpoint(norm.ours(saving), *leaves, use_reentrant=use_reentrant)
    y.backward(normal(*SHAPE, seed=9))
    assert all(map(torch.equal, (y, *(leaf.grad for leaf in leaves)), results))


@each_norm_saving
@each_of_three
def test_backward_twice_gives_the_same(form: NormForm, saving: NormSaving) -> None:
    norm, x = norm_of(form, (CHANNELS,), BF16), input_of(dtype=BF16).requires_grad_()
    leaves = [x, *(each.requires_grad_() for each in norm.parameters)]
    y = norm.ours(saving)(*leaves)
    before = y.detach().clone()
    first, second = (torch.autograd.grad(y.sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))
    assert torch.equal(y, before)
