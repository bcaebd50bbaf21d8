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
CHANNELS, ROWS = 130, 8  # of a piece
FORMS_AND_DTYPES = [
    *((form, dtype) for form in (LLAMA, LAYER_NORM) for dtype in (FP32, BF16)),
    (LLAMA, FP64),
    (FORMS["deepseek_v4"], BF16),
]
each_case = pytest.mark.parametrize(
    ("form", "dtype"), FORMS_AND_DTYPES, ids=lambda each: each.name if isinstance(each, NormForm) else dtype_name(each)
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(inductor, "PIECE", ROWS * CHANNELS)
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
    for rows in (3, 2 * ROWS, 2 * ROWS + 3):  # a rest alone, no rest, and both
        assert_as_eager(norm, rows, saving, dtype)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True), (True, False, True)], ids=str)
def test_gradients_that_are_wanted(wanted: tuple[bool, bool, bool]) -> None:
    norm, x = norm_of(LAYER_NORM, (CHANNELS,), FP32), normal(3 * ROWS, CHANNELS)
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
    norm, x = norm_of(LLAMA, (CHANNELS,), FP32), normal(ROWS, CHANNELS)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    _, dx, _ = output_and_gradients(norm.ours("output", "compile"), x, *norm.parameters)
    assert dx.isnan().any(1).tolist() == [False, True, True] + [False] * 5


def test_a_device_other_than_the_cpu_compiles_rows_of_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function, at once."""
    torch._dynamo.reset()
    dy, y, reciprocal = normal(5, CHANNELS), normal(5, CHANNELS, seed=1), normal(5, seed=2).abs()
    weight, kept = normal(CHANNELS, seed=3), torch.tensor([1, 5])
    arguments = (dy, y, reciprocal, normal(5, 2, seed=4), kept, weight, None, LLAMA, FP32, (True, True, False))
    expected = inductor.eager.backward(*arguments)
    compiled = inductor._compiled
    case = inductor.Case(True, False, False, 2, True, True, False)
    function = compiled(case, CHANNELS, torch.device("meta"))
    inverse = weight.reciprocal().index_fill(0, kept, 0.0)
    is_kept = torch.zeros(2, CHANNELS).scatter_(1, kept.unsqueeze(1), 1.0)
    dx, dfactor, dbias = torch.empty_like(dy), torch.empty(CHANNELS), torch.empty(CHANNELS)
    constants = weight, inverse, inverse, is_kept
    function(dx, dfactor, dbias, *constants, dy, y, arguments[3], reciprocal, reciprocal)
    torch.testing.assert_close((dx, dfactor), expected[:2], rtol=1e-4, atol=1e-5)
