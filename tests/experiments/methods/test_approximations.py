"""Each approximation alone: its derivative, and the published numbers."""

from __future__ import annotations

import math

import pytest
import torch

from experiments.benchmark.operators.implementations import Unavailable
from experiments.methods.accuracy import derivative_error
from experiments.methods.catalogue import METHODS
from experiments.methods.codes import pack_codes, unpack_codes
from experiments.methods.derivative import StoredDerivative
from experiments.methods.few_bit import FewBit, best_step_function
from experiments.methods.quantized import Noise, QuantizedInput
from hf_invact.curves import CURVES, GELU, GELU_TANH, SILU, Curve
from tests.helpers import each_dtype, normal, output_and_gradient

DRAWS = 1 << 16


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_codes_are_packed_without_a_gap(bits: int, count: int) -> None:
    codes = torch.randint(2**bits, (count,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.numel() == bits * math.ceil(count / 8)
    assert torch.equal(unpack_codes(packed)[:count], codes)


@pytest.mark.parametrize(("bits", "rms"), [(2, 0.105), (3, 0.05), (4, 0.025)])
@pytest.mark.parametrize("curve", [GELU, SILU], ids=lambda curve: curve.name)
def test_few_bits_err_as_little_as_their_number_allows(curve: Curve, bits: int, rms: float) -> None:
    error = derivative_error(METHODS[f"few-bit-{bits}"].function(curve), curve, normal(DRAWS))
    assert error["rms"] == pytest.approx(best_step_function(curve, 2**bits).error, rel=0.02)
    assert error["rms"] < rms
    assert abs(error["bias"]) < 2e-3


def test_steps_are_the_best_ones() -> None:
    """With two steps, all borders can be tried."""
    steps = best_step_function(GELU, 2)
    x = normal(1 << 18, dtype=torch.float64)
    slope = GELU.derivative(x)

    def error(border: float) -> float:
        left = x < border
        parts = (slope[left], slope[~left])
        return math.sqrt(sum((part - part.mean()).square().sum().item() for part in parts) / len(x))

    tried = {border: error(border) for border in torch.arange(-2, 2, 1 / 16).tolist()}
    assert steps.error == pytest.approx(error(steps.borders[0]), rel=0.01)
    assert error(steps.borders[0]) <= min(tried.values()) * 1.001


def test_few_bits_keep_the_piece_of_each_input() -> None:
    approximation = FewBit(SILU, 3)
    x = torch.tensor([*(border + shift for border in approximation.borders.tolist() for shift in (-1e-3, 1e-3))])
    slope = approximation.slope(*approximation.keep(x, x))[: len(x)]
    expected = [approximation.levels[piece] for piece in range(8) for _ in (0, 1)][1:-1]
    assert slope.tolist() == expected


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.float32), (2, torch.bfloat16)])
def test_stochastic_rounding_is_right_on_average_and_within_a_step(bits: int, dtype: torch.dtype) -> None:
    line = Curve("line", torch.clone, torch.clone, GELU.inverse)  # whose slope is what the input is taken for
    approximation = QuantizedInput(line, bits, dtype, Noise())
    x = normal(1000)
    torch.manual_seed(0)
    taken = torch.stack([approximation.slope(*approximation.keep(x, x)).flatten()[:1000] for _ in range(500)])
    step = 7 / (2**bits - 1)
    assert (taken - x).abs().max() < step * 1.05
    # The ranges in bfloat16 cut a little off the largest of each group.
    assert (taken.mean(0) - x).abs().max() < (step / 4 if bits == 8 else 0.15)
    assert (taken.mean(0) - x).mean().abs() < 0.01 * step


def test_noise_leaves_the_default_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = Noise(), Noise()
    drawn = [first.like(torch.empty(3)), first.like(torch.empty(3))]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(*drawn)
    assert torch.equal(second.like(torch.empty(3)), drawn[0])


def test_an_even_group_has_no_error() -> None:
    approximation = QuantizedInput(SILU, 2, torch.float32, Noise())
    x = torch.full((256,), -1.5)
    assert torch.equal(approximation.slope(*approximation.keep(x, x)).flatten(), SILU.derivative(x))


@each_dtype
def test_stored_derivative_is_rounded_once(dtype: torch.dtype) -> None:
    x = normal(1000, dtype=dtype)
    (kept,) = StoredDerivative(GELU).keep(x, x)
    assert kept.dtype == dtype
    exact = GELU.derivative(x.double())
    computed = 1e-6 if dtype != torch.float64 else 0.0  # the formula in float32
    assert ((kept.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() / 2 + computed).all()


@pytest.mark.parametrize(
    ("curve", "dtype", "rms", "largest"),
    [
        (GELU, torch.float32, 0.0032, 0.0188),
        (GELU, torch.bfloat16, 0.0041, 0.033),
        (SILU, torch.float32, 3.5e-4, 0.0022),
    ],
    ids=["gelu-fp32", "gelu-bf16", "silu-fp32"],
)
def test_published_formulas_err_as_measured(curve: Curve, dtype: torch.dtype, rms: float, largest: float) -> None:
    error = derivative_error(METHODS["published"].function(curve), curve, normal(1 << 20, dtype=dtype))
    assert error["max"] == pytest.approx(largest, rel=0.1)
    assert error["rms"] == pytest.approx(rms, rel=0.1)
    assert error["non_finite"] == 0


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.0125), (torch.float16, 0.0049)], ids=["bf16", "fp16"])
def test_published_silu_is_not_a_number_in_half_precision(dtype: torch.dtype, share: float) -> None:
    error = derivative_error(METHODS["published"].function(SILU), SILU, normal(DRAWS, dtype=dtype))
    assert error["non_finite"] == pytest.approx(share, rel=0.1)


def test_no_formula_was_published_for_the_tanh_form() -> None:
    with pytest.raises(Unavailable, match="none for gelu_tanh"):
        METHODS["published"].function(GELU_TANH)


@pytest.mark.parametrize("name", METHODS)
def test_any_layout_and_size_gives_the_same_gradient(name: str) -> None:
    function = METHODS[name].function(CURVES["silu"])
    x = normal(6, 50)
    torch.manual_seed(0)
    _, dense = output_and_gradient(function, x)
    torch.manual_seed(0)
    _, strided = output_and_gradient(METHODS[name].function(CURVES["silu"]), x.t().contiguous().t())
    torch.testing.assert_close(strided, dense)  # PyTorch's own functions round differently in another order
    assert output_and_gradient(function, x[:0])[1].shape == (0, 50)
