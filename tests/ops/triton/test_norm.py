"""Triton's kernels for norms against the eager backend: compiled if there is a GPU, else in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from hf_invact.norms import FORMS, LAYER_NORM, LLAMA, NormForm
from hf_invact.ops import NormSaving, normalize
from hf_invact.ops.eager import norm as eager
from hf_invact.ops.operators.norm import implementation
from tests.helpers import LAYOUTS, dtype_name, normal, output_and_gradients
from tests.ops.norms import EPS, WEIGHTLESS, Norm, each_form, each_norm_saving, each_of_three, norm_of, weight_vectors

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# NumPy's warnings come from the interpreter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning"),
    *([pytest.mark.gpu] if DEVICE == "cuda" else []),
]
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
PAIRS = [(FP32, FP32), (BF16, BF16), (FP16, FP16), (BF16, FP32)]
# Several rows for each program, sizes on both sides of a block, and a program that goes on to further rows.
SHAPES = [(1, 3), (5, 3), (37, 64), (9, 129), (3, 1023), (3, 1025), (2, 3, 257)]

each_pair = pytest.mark.parametrize(("of_x", "of_weight"), PAIRS, ids=dtype_name)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """New tensors are filled with NaN (bytes: 255), which shows elements that a kernel does not write."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def triton() -> ModuleType:
    from hf_invact.ops.triton import norm

    return norm


def on_device(norm: Norm) -> Norm:
    weight, bias = (None if each is None else each.to(DEVICE) for each in (norm.weight, norm.bias))
    return Norm(norm.form, weight, bias, norm.dims, norm.eps)


def assert_as_eager(norm: Norm, x: Tensor, saving: NormSaving) -> None:
    norm, x = on_device(norm), x.to(DEVICE)
    dy = normal(*x.shape, dtype=norm.native(x, *norm.parameters).dtype, seed=9).to(DEVICE)
    found, expected = (
        output_and_gradients(norm.ours(saving, backend), x, *norm.parameters, dy=dy) for backend in ("triton", "eager")
    )
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        # A sum in another order may round to a neighbour.
        scale = other.float().abs().max().clamp(min=1e-30).item()
        torch.testing.assert_close(
            one.float() / scale, other.float() / scale, rtol=2 * torch.finfo(other.dtype).eps, atol=2e-6
        )


@each_pair
@each_norm_saving
@each_form
def test_as_the_eager_backend(form: NormForm, saving: NormSaving, of_x: torch.dtype, of_weight: torch.dtype) -> None:
    if DEVICE == "cuda" and form.function and of_x != of_weight and form.name not in WEIGHTLESS:
        pytest.skip("PyTorch's own function refuses two dtypes on a GPU")
    assert_as_eager(norm_of(form, (129,), of_x, of_weight), normal(9, 129, dtype=of_x), saving)


@each_shape
@each_norm_saving
@each_of_three
def test_every_size(
    form: NormForm, saving: NormSaving, shape: tuple[int, ...], triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "PROGRAMS", 2)
    assert_as_eager(norm_of(form, shape[-1:], FP32), normal(*shape) + 0.5, saving)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_norm_saving
def test_every_layout(saving: NormSaving, layout: str) -> None:
    assert_as_eager(norm_of(LAYER_NORM, (3, 5), FP32), LAYOUTS[layout]((2, 8, 3, 5), FP32, 0), saving)


@pytest.mark.parametrize("form", [LLAMA, FORMS["gemma"], LAYER_NORM], ids=lambda form: form.name)
@pytest.mark.parametrize("name", weight_vectors(200, 0.0))
def test_every_weight(form: NormForm, name: str) -> None:
    bias = None if form is not LAYER_NORM else 0.05 * normal(200, seed=3)
    norm = Norm(form, weight_vectors(200, form.offset)[name].bfloat16(), None if bias is None else bias.bfloat16())
    x, dy = normal(6, 200, dtype=BF16).to(DEVICE), normal(6, 200, dtype=BF16, seed=1).to(DEVICE)
    norm = on_device(norm)
    found, expected = (
        output_and_gradients(norm.ours("output", backend), x, *norm.parameters, dy=dy)
        for backend in ("triton", "eager")
    )
    for one, other in zip(found, expected, strict=True):
        scale = max(other.float().abs().max().item(), 1e-15)
        torch.testing.assert_close(one.float() / scale, other.float() / scale, rtol=2e-2, atol=2e-2)


def test_the_channels_that_are_kept(triton: ModuleType) -> None:
    weight, bias = normal(300, seed=1).to(DEVICE), normal(300, seed=2).to(DEVICE)
    weight[[3, 290]], bias[3] = 0.0, 0.0
    x = normal(5, 300).to(DEVICE)
    for factor, shift in ((weight, None), (weight, bias), (None, bias), (None, None)):
        *_, exact, kept = triton.forward(x, factor, shift, EPS, 1, LAYER_NORM)
        *_, expected_exact, expected = eager.forward(x, factor, shift, EPS, 1, LAYER_NORM)
        order, expected_order = kept.argsort(), expected.argsort()
        assert torch.equal(kept[order], expected[expected_order])
        torch.testing.assert_close(exact[:, order], expected_exact[:, expected_order], rtol=1e-5, atol=1e-6)


def test_a_weight_that_is_not_a_number(triton: ModuleType) -> None:
    weight = torch.ones(300, device=DEVICE)
    weight[:9] = torch.nan
    *_, kept = triton.forward(normal(5, 300).to(DEVICE), weight, None, EPS, 1, LLAMA)
    assert len(set(kept.tolist())) == 4


@each_norm_saving
@each_of_three
def test_no_rows(form: NormForm, saving: NormSaving) -> None:
    norm = on_device(norm_of(form, (64,), FP32))
    y, dx, *others = output_and_gradients(
        norm.ours(saving, "triton"), torch.empty(0, 64, device=DEVICE), *norm.parameters
    )
    assert y.shape == dx.shape == (0, 64)
    assert all(torch.equal(each, torch.zeros(64, device=DEVICE)) for each in others)


def test_rows_that_are_not_finite() -> None:
    norm = on_device(norm_of(LAYER_NORM, (100,), FP32))
    x = normal(5, 100).to(DEVICE)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    y, dx, *_ = output_and_gradients(norm.ours("output", "triton"), x, *norm.parameters)
    assert y.isnan().any(1).tolist() == dx.isnan().any(1).tolist() == [False, True, True, False, False]


def test_the_sums_are_the_same_each_time() -> None:
    norm, x = on_device(norm_of(LAYER_NORM, (96,), BF16)), normal(70, 96, dtype=BF16).to(DEVICE)
    first, second = (output_and_gradients(norm.ours("output", "triton"), x, *norm.parameters) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_wide_rows_and_float64_are_left_to_the_eager_backend(
    triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "MOST_CHANNELS", 64)
    monkeypatch.setattr(triton, "launch", None)
    for saving in ("output", "input"):
        assert_as_eager(norm_of(LLAMA, (65,), FP32), normal(3, 65), saving)
    x = normal(3, 8, dtype=torch.float64).to(DEVICE).requires_grad_()
    assert torch.equal(normalize(x, None, None, LLAMA, EPS), LLAMA.forward(x, None, None, EPS))
    with pytest.raises(RuntimeError, match="its kernels compute in float32"):
        normalize(x, None, None, LLAMA, EPS, backend="triton")


@each_norm_saving
def test_a_step_uses_the_kernels(saving: NormSaving, triton: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    run = triton.launch
    monkeypatch.setattr(
        triton,
        "launch",
        lambda kernel, *rest, **options: (launched.append(kernel.__name__), run(kernel, *rest, **options)),
    )
    norm = on_device(norm_of(LLAMA, (64,), FP32))
    output_and_gradients(norm.ours(saving, "triton"), normal(6, 64).to(DEVICE), *norm.parameters)
    assert launched == (["choose_kept"] if saving == "output" else []) + ["norm_forward", "norm_backward"]


def test_the_backend_is_found() -> None:
    assert implementation("triton").__name__.endswith("triton.norm")
