"""Norms piece by piece: every bit as at once."""

from __future__ import annotations

import pytest
import torch

from hf_invact.norms import LLAMA, NormForm
from hf_invact.ops import NormSaving
from hf_invact.ops.eager import norm as eager_norm
from tests.helpers import DTYPES, dtype_name, normal, output_and_gradients, threads
from tests.ops.norms import each_form, each_norm_saving, norm_of

# Rows of several widths; a piece holds some rows of the narrow ones, and one of the wide ones.
WIDTHS = (8, 100, 576, 1000, 20_000)
PIECE = 1000


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@each_form
def test_outputs_are_those_of_the_whole(form: NormForm, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_norm, "CPU_PIECE", PIECE)
    for width in WIDTHS:
        norm, x = norm_of(form, (width,), dtype), normal(max(3, 5000 // width), width, dtype=dtype)
        for count in (1, 2):
            with threads(count):
                y = norm.ours()(x.clone().requires_grad_(), *norm.parameters)
                assert torch.equal(y, norm.native(x, *norm.parameters)), width


def test_a_row_that_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager_norm, "CPU_PIECE", PIECE)
    with threads(2):
        norm, x = norm_of(LLAMA, (1 << 17,), torch.float32), normal(3, 1 << 17)
        assert torch.equal(norm.ours()(x.clone().requires_grad_(), *norm.parameters), norm.native(x, *norm.parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@each_norm_saving
@each_form
def test_gradients_are_those_of_the_whole(
    form: NormForm, saving: NormSaving, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    norm, x = norm_of(form, (100,), dtype), normal(57, 100, dtype=dtype)
    dy = normal(57, 100, dtype=norm.native(x, *norm.parameters).dtype, seed=1)
    whole = output_and_gradients(norm.ours(saving), x, *norm.parameters, dy=dy)
    monkeypatch.setattr(eager_norm, "CPU_PIECE", PIECE)
    for one, other in zip(output_and_gradients(norm.ours(saving), x, *norm.parameters, dy=dy), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
