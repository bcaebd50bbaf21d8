"""The compiled gradients of norms against the eager backend's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch

from hf_invact.norms import FORMS, LAYER_NORM, LLAMA, NormForm
from hf_invact.ops import NormSaving
from hf_invact.ops.inductor import norm as inductor
from tests.helpers import dtype_name, normal, output_and_gradients
from tests.ops.norms import Norm, each_norm_saving, norm_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]
BF16, FP32, FP64 = torch.bfloat16, torch.float32, torch.float64
CHANNELS = 130
FORMS_AND_DTYPES = [
    *((form, dtype) for form in (LLAMA, LAYER_NORM) for dtype in (FP32, BF16)),
    (LLAMA, FP64),
    (FORMS["deepseek_v4"], BF16),
]
each_case = pytest.mark.parametrize(
    ("form", "dtype"), FORMS_AND_DTYPES, ids=lambda each: each.name if isinstance(each, NormForm) else dtype_name(each)
)


@pytest.fixture(autouse=True)
def _compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inductor, "LEFT_TO_EAGER", ())
    yield
    inductor._compiled.cache_clear()


def assert_as_eager(norm: Norm, rows: int, saving: NormSaving, dtype: torch.dtype) -> None:
    x = normal(rows, CHANNELS, dtype=dtype)
    dy = normal(rows, CHANNELS, dtype=norm.native(x, *norm.parameters).dtype, seed=9)
    found, expected = (
        output_and_gradients(norm.ours(saving, backend), x, *norm.parameters, dy=dy) for backend in ("compile", "eager")
    )
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        scale = max(other.double().abs().max().item(), 1e-30)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(
            one / scale, other / scale, rtol=2 * eps, atol=max(2e-6 if dtype != FP64 else 0, eps)
        )


@each_norm_saving
@each_case
def test_as_the_eager_backend(form: NormForm, dtype: torch.dtype, saving: NormSaving) -> None:
    norm = norm_of(form, (CHANNELS,), dtype)
    if norm.weight is not None:
        norm.weight[::30] = 0.0
    for rows in (3, 17):
        assert_as_eager(norm, rows, saving, dtype)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True), (True, False, True)], ids=str)
def test_gradients_that_are_wanted(wanted: tuple[bool, bool, bool]) -> None:
    norm, x = norm_of(LAYER_NORM, (CHANNELS,), FP32), normal(24, CHANNELS)
    results = []
    for backend in ("compile", "eager"):
        leaves = [
            each.detach().requires_grad_(is_wanted)
            for each, is_wanted in zip((x, *norm.parameters), wanted, strict=True)
        ]
        norm.ours("output", backend)(*leaves).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert [each is not None for each in results[0]] == list(wanted)
    for one, other in zip(*results, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_row_that_is_not_finite() -> None:
    norm, x = norm_of(LLAMA, (CHANNELS,), FP32), normal(8, CHANNELS)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    _, dx, _ = output_and_gradients(norm.ours("output", "compile"), x, *norm.parameters)
    assert dx.isnan().any(1).tolist() == [False, True, True] + [False] * 5


@pytest.mark.parametrize("form", [LLAMA, LAYER_NORM], ids=lambda form: form.name)
def test_a_cpu_is_left_to_the_eager_backend(form: NormForm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    norm, x = norm_of(form, (CHANNELS,), FP32), normal(24, CHANNELS)
    found, expected = (
        output_and_gradients(norm.ours("output", backend), x, *norm.parameters, dy=x)
        for backend in ("compile", "eager")
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
