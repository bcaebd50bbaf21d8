"""The compiled formulas against the plain backend."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor

from hf_invact.curves import CURVES, GELU, SILU, Curve, elu
from hf_invact.ops import BACKENDS, compiled, gate, invert
from tests.helpers import LAYOUTS, all_numbers, dtype_name, normal, output_and_gradients

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler"),
]
EAGER, COMPILE = BACKENDS["eager"], BACKENDS["compile"]
PIECE, LARGE_PIECE = 128, 512
# Fitted, in each dtype and with limits; and closed forms with bits and without. (Compiling takes seconds each.)
CURVES_AND_DTYPES = [
    (GELU, torch.float32),
    (SILU, torch.bfloat16),
    (CURVES["clipped_gelu"], torch.float16),
    (CURVES["hardswish"], torch.float32),
    (elu(), torch.bfloat16),
]
each_curve_and_dtype = pytest.mark.parametrize(
    ("curve", "dtype"), CURVES_AND_DTYPES, ids=lambda value: getattr(value, "name", None) or dtype_name(value)
)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "CPU_PIECES", (LARGE_PIECE, PIECE))


def assert_close(result: Tensor, expected: Tensor, last_places: float = 2) -> None:
    assert (result.dtype, result.shape, result.stride()) == (expected.dtype, expected.shape, expected.stride())
    tolerance = last_places * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(result, expected, rtol=max(tolerance, 1e-5), atol=4e-6, equal_nan=True)


@pytest.mark.parametrize("size", [0, 9, PIECE, LARGE_PIECE + PIECE + 3])
@each_curve_and_dtype
def test_as_the_plain_backend(curve: Curve, dtype: torch.dtype, size: int) -> None:
    x, up, dy = (normal(size, dtype=dtype, seed=seed) for seed in range(3))
    (y, side), (expected, expected_side) = (backend.forward(x, curve) for backend in (COMPILE, EAGER))
    assert torch.equal(y, expected)
    assert side is expected_side is None or torch.equal(side, expected_side)
    assert_close(COMPILE.backward(dy, y, side, curve), EAGER.backward(dy, y, side, curve))
    (product, side), (expected, _) = (backend.gate_forward(x, up, curve) for backend in (COMPILE, EAGER))
    assert torch.equal(product, expected)
    gradients = (backend.gate_backward(dy, product, up, side, curve) for backend in (COMPILE, EAGER))
    for result, of_eager in zip(*gradients, strict=True):
        assert_close(result, of_eager)


def test_all_numbers() -> None:
    x = all_numbers(torch.bfloat16)
    y, side = COMPILE.forward(x, GELU)
    expected, expected_side = EAGER.forward(x, GELU)
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    assert torch.equal(side, expected_side)
    assert_close(*(backend.backward(torch.ones_like(y), y, side, GELU) for backend in (COMPILE, EAGER)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout: str) -> None:
    gate_input, up, dy = (LAYOUTS[layout]((2, 8, 3, 5), torch.float32, seed) for seed in range(3))
    for backend in ("compile", "eager"):
        results = output_and_gradients(lambda a, u: gate(a, u, GELU, backend=backend), gate_input, up, dy=dy)  # noqa: B023
        if backend == "compile":
            ours = results
    for result, expected in zip(ours, results, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=4e-6)


def test_has_one_derivative() -> None:
    x = normal(PIECE).requires_grad_()
    (gradient,) = torch.autograd.grad(invert(x, GELU, backend="compile").square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="an inverted gelu has no second derivative"):
        gradient.sum().backward()


def test_nothing_is_compiled_again_for_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(size: int) -> None:
        x = normal(size).requires_grad_()
        invert(x, GELU, backend="compile").sum().backward()

    step(100)
    step(LARGE_PIECE)
    before = len(torch._dynamo.utils.compilation_time_metrics.get("compile_inner", []))
    for size in (1, 99, PIECE, 2 * LARGE_PIECE + 200):
        step(size)
    assert len(torch._dynamo.utils.compilation_time_metrics.get("compile_inner", [])) == before


def test_a_kernel_for_any_size_as_other_devices_have_it() -> None:
    kernel = compiled._compiled(compiled._backward, GELU, torch.float32, False)
    for size in (64, 96, 160):
        x, dy = normal(size), normal(size, seed=1)
        y, side = EAGER.forward(x, GELU)
        dx = torch.empty(size)
        kernel([dx], [dy, y, (x < GELU.threshold(torch.float32)).view(torch.uint8)])
        assert_close(dx, EAGER.backward(dy, y, side, GELU))
