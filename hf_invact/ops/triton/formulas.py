"""The formulas in Triton: activations, their fitted derivatives, and outputs from products. All in float32.

The derivative follows `eager.formula` step by step. `unmultiply` returns the same as `eager.unmultiply`, except for
products next to a power of two and products that may have been rounded from halfway between two numbers. The
activations follow PyTorch's CUDA kernels, with the same functions of CUDA's library, so that results are equal in every
bit.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from ..eager import unmultiply as eager

# Whether kernels run in Python on the CPU, for tests.
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
ALL = tl.constexpr(tl.PropagateNan.ALL)
SMALLEST_FACTOR = tl.constexpr(eager.SMALLEST_FACTOR)

if INTERPRETED.value:

    @triton.jit
    def exp(x):
        return tl.exp(x)

    @triton.jit
    def log1p(x):
        # The logarithm's relative error is that of its rounded argument, which cancels.
        rounded = 1.0 + x
        corrected = tl.log(rounded) * (x / (rounded - 1.0))
        return tl.where(rounded == 1.0, x, tl.where(x > 1e7, tl.log(x), corrected))

    @triton.jit
    def tanh(x):
        square = x * x
        series = x * (1.0 - square / 3.0 * (1.0 - 0.4 * square))
        return tl.where(square < 0.0025, series, 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0))

else:
    from triton.language.extra.libdevice import exp, log1p, tanh


@triton.jit
def gelu(x):
    return x * 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440))


@triton.jit
def gelu_tanh(x):
    inner = 0.79788456080286535588 * (x + 0.044715 * (x * x * x))
    return 0.5 * x * (1.0 + tanh(inner))


@triton.jit
def silu(x):
    return tl.div_rn(x, 1.0 + exp(-x))


@triton.jit
def quick_gelu(x):
    return x * tl.div_rn(1.0, 1.0 + exp(-(1.702 * x)))


@triton.jit
def mish(x):
    return x * tanh(log1p(exp(x)))


@triton.jit
def identity(x):
    return x


# The derivatives as functions of the input, for plans that keep it.


@triton.jit
def gelu_slope(x):
    return 0.5 * (1.0 + tl.erf(x * 0.70710678118654752440)) + x * exp(-0.5 * x * x) * 0.39894228040143267794


@triton.jit
def gelu_tanh_slope(x):
    inner = 0.79788456080286535588 * (x + 0.044715 * (x * x * x))
    slope_of_inner = 0.79788456080286535588 * (1.0 + 3.0 * 0.044715 * (x * x))
    t = tanh(inner)
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope_of_inner


@triton.jit
def silu_slope(x):
    sigmoid = tl.div_rn(1.0, 1.0 + exp(-x))
    return sigmoid * (1.0 + x * (1.0 - sigmoid))


@triton.jit
def quick_gelu_slope(x):
    return silu_slope(1.702 * x)


@triton.jit
def mish_slope(x):
    t = tanh(log1p(exp(x)))
    return t + x * (1.0 - t * t) * tl.div_rn(1.0, 1.0 + exp(-x))


@triton.jit
def is_left_of(x, THRESHOLD: tl.constexpr):
    """An infinite input counts as left: see `eager.activation.side_bits`."""
    return (x < THRESHOLD) | (x == float("inf"))


@triton.jit
def derivative(y, is_left, error, FIT: tl.constexpr):
    """``D(y, side)``, where ``y`` is known up to ``error``. `FIT` is a `constants.FitConstants`."""
    scaled = y * FIT.scale
    rise = (scaled - FIT.head) - FIT.tail
    lowest, highest = tl.maximum(rise - error, 0.0, ALL), tl.maximum(rise + error, 0.0, ALL)
    root = 0.5 * (tl.sqrt(lowest) + tl.sqrt(highest))
    numerator, denominator = _ratio(tl.minimum(root, FIT.sides[0].end, ALL), FIT, 0)
    if len(FIT.sides) == 2:
        left_numerator, left_denominator = _ratio(root, FIT, 1)
        numerator = tl.where(is_left, scaled * left_numerator, numerator)
        denominator = tl.where(is_left, left_denominator, denominator)
    slope = _divide(numerator, denominator) if FIT.is_coarse else numerator / denominator
    if FIT.limits is not None:
        slope = tl.where((y <= FIT.limits[0]) | (y >= FIT.limits[1]), 0.0, slope)
    return slope


@triton.jit
def _ratio(root, FIT: tl.constexpr, SIDE: tl.constexpr):
    """Numerator and denominator, which have the same degree, by Horner's scheme."""
    DEGREE: tl.constexpr = len(FIT.sides[SIDE].numerator) - 1
    u = root - FIT.sides[SIDE].center
    numerator = u * FIT.sides[SIDE].numerator[DEGREE] + FIT.sides[SIDE].numerator[DEGREE - 1]
    denominator = u * FIT.sides[SIDE].denominator[DEGREE] + FIT.sides[SIDE].denominator[DEGREE - 1]
    for step in tl.static_range(2, DEGREE + 1):
        numerator = numerator * u + FIT.sides[SIDE].numerator[DEGREE - step]
        denominator = denominator * u + FIT.sides[SIDE].denominator[DEGREE - step]
    return numerator, denominator


@triton.jit
def away_from_zero(factor):
    return _with_sign_of(tl.maximum(tl.abs(factor), SMALLEST_FACTOR, ALL), factor + 0.0)  # -0 + 0 is 0


@triton.jit
def _with_sign_of(size, number):
    sign = number.to(tl.int32, bitcast=True) & -0x80000000
    return (size.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@triton.jit
def unmultiply(product, factor, DTYPE: tl.constexpr, FIT: tl.constexpr):
    """The output whose product with a factor away from zero was rounded to ``product``, and its largest error."""
    if FIT.is_coarse:
        size = tl.abs(factor)
        quotient = _divide(product, size)
        quotient = tl.where(factor < 0.0, -quotient, quotient)
        y = round_to(quotient, DTYPE).to(tl.float32)
        distance = quotient - y
        half_step = tl.minimum(_half_last_place(y, FIT), FIT.half_of_the_last)
        uncertainty = _divide(_half_last_place(product, FIT), size)
        is_one_of_two = (uncertainty + tl.abs(distance) >= 2.0 * half_step) & (distance != 0.0)
        y = tl.where(is_one_of_two, y + _with_sign_of(half_step, distance), y)
        error = tl.where(is_one_of_two, 2.0 * half_step, half_step) * FIT.scale
    else:
        y = product / factor
        error = tl.full([1, 1], FIT.error, tl.float32)
    return y, error


@triton.jit
def _half_last_place(number, FIT: tl.constexpr):
    """Half the distance between neighbouring numbers of the half-precision dtype at this one."""
    power = (number.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    return tl.maximum(power, FIT.smallest_normal) * (0.5 * FIT.eps)


@triton.jit
def _divide(number, positive):
    """With 21 exact bits, enough for half precision: two multiplications cost less than the checks of a division."""
    reciprocal_root = tl.rsqrt(positive)
    return number * reciprocal_root * reciprocal_root


@triton.jit
def round_to(number, DTYPE: tl.constexpr):
    if INTERPRETED and tl.bfloat16 == DTYPE:  # the interpreter truncates
        bits = number.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        number = tl.where(number == number, nearest, number)
    return number.to(DTYPE)
