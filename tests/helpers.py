"""The table of cases for the tests of operators, the error bounds, and what the tests share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from torch import Tensor

from hf_invact.curves import CURVES, GELU, ClosedForm, Curve, Fit
from hf_invact.ops import SAVINGS, Saving, gate

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
HALF_DTYPES = (torch.bfloat16, torch.float16)

# A gate that keeps its product instead of the activation's output replaces smaller factors by this one. It does so in
# these dtypes (in float16 this number is 0), and for these curves.
TINY = 2.0**-60
PRODUCT_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
GATED = tuple(curve for curve in CURVES.values() if curve.name not in ("clipped_gelu", "hardswish", "laplace", "relu6"))

# Curves that are fitted everywhere (clipped_gelu uses GELU's fit between its limits), and those with exact formulas.
FITTED = tuple(curve for curve in CURVES.values() if isinstance(curve.inverse, Fit) and curve.limits is None)
CLOSED = tuple(curve for curve in CURVES.values() if isinstance(curve.inverse, ClosedForm))
# One closed form with a side bit, and three of rising curves, in the output's sign, its exponential and its root.
REPRESENTATIVES = tuple(CURVES[name] for name in ("hardswish", "elu", "softplus", "relu2"))

# No dimension, no element, and sizes on both sides of a byte of bits and of a small piece (SMALL_PIECE elements).
SMALL_PIECE = 64
SHAPES = ((), (0,), (3, 0, 2), (1,), (7,), (8,), (9,), (63,), (64,), (65,), (129,), (2, 3, 5), (2, 8, 3, 5))
FOUR_DIMENSIONS = (2, 8, 3, 5)


@dataclass(frozen=True)
class ErrorBar:
    """Bounds on the derivative's distance from the exact one, before it is rounded to the dtype.

    ``rms`` and ``bias`` hold for ``x ~ N(0, 1)``, ``max_away`` where ``|x - x_min| > 0.05``: next to the turning point
    the rounding of ``y`` causes a larger error than elsewhere.
    """

    max: float
    max_away: float
    rms: float
    bias: float


ERROR_BARS = {
    torch.float32: ErrorBar(max=1e-4, max_away=5e-6, rms=2e-6, bias=1e-7),
    torch.bfloat16: ErrorBar(max=0.012, max_away=0.012, rms=0.00155, bias=2e-5),
    torch.float16: ErrorBar(max=0.005, max_away=0.005, rms=0.0004, bias=3e-6),
    torch.float64: ErrorBar(max=1e-6, max_away=1e-6, rms=1e-6, bias=1e-7),
}
# Where a rounded output holds less information (mish), or the grids of rounded inputs and outputs differ more than
# usual (quick_gelu).
HIGHER_BARS: dict[tuple[str, torch.dtype], dict[str, float]] = {
    ("mish", torch.float32): {"max": 1.2e-4},
    ("mish", torch.bfloat16): {"max": 0.013, "max_away": 0.013, "rms": 0.00185},
    ("quick_gelu", torch.bfloat16): {"bias": 8e-5},
}
# For exact formulas, except where digits are lost. tests/ops/test_closed_forms.py has bounds in last places.
CLOSED_BARS = {
    torch.float32: ErrorBar(max=1.2e-4, max_away=2e-6, rms=1e-6, bias=1e-7),
    torch.bfloat16: ErrorBar(max=0.022, max_away=0.022, rms=0.003, bias=2e-4),
    torch.float16: ErrorBar(max=0.005, max_away=0.005, rms=0.0005, bias=2e-5),
    torch.float64: ErrorBar(max=1e-6, max_away=1e-6, rms=1e-6, bias=1e-7),
}


def error_bar(curve: Curve, dtype: torch.dtype) -> ErrorBar:
    """The bounds that are promised for a curve."""
    if isinstance(curve.inverse, ClosedForm):
        return CLOSED_BARS[dtype]
    bar = replace(ERROR_BARS[dtype], **HIGHER_BARS.get((curve.name, dtype), {}))
    slack = native_slack(curve, dtype)
    return replace(bar, max=bar.max * slack, rms=bar.rms * slack)


@cache
def native_slack(curve: Curve, dtype: torch.dtype) -> float:
    """By how much the bar next to the turning point is raised, for the error of PyTorch's own float32 output there.

    The bars were measured where that error is up to 2 units in the last place. The formulas allow for it, which halves
    the derivative's error, and this error is proportional to the root of the output's. On a CPU without AVX-512 gelu's
    output is off by 8 units, which no formula in that output can correct.
    """
    if dtype != torch.float32 or curve.x_min is None:
        return 1.0
    x = torch.linspace(curve.x_min - 0.01, curve.x_min + 0.01, 100_000)
    y, exact = curve.forward(x).double(), curve.forward(x.double())
    units = ((y - exact).abs() / last_place(exact, dtype)).max().item()
    return max(1.0, 2 * math.sqrt(units / 2) - 1)


def rounded_rms(bar: ErrorBar, dtype: torch.dtype) -> float:
    """The bound on the rms once the derivative, mostly below 1, is rounded to the dtype."""
    return math.hypot(bar.rms, torch.finfo(dtype).eps / 5)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """The same numbers in every dtype, up to rounding."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _transposed(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*reversed(shape), dtype=dtype, seed=seed).permute(*reversed(range(len(shape))))


def _channels_last(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed).contiguous(memory_format=torch.channels_last)


def _half_of_a_row(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape[:-1], 2 * shape[-1], dtype=dtype, seed=seed).chunk(2, dim=-1)[1]


def _every_second(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape[:-1], 2 * shape[-1], dtype=dtype, seed=seed)[..., ::2]


def _expanded(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(1, *shape[1:], dtype=dtype, seed=seed).expand(shape)


def _offset(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(math.prod(shape) + 3, dtype=dtype, seed=seed)[3:].view(shape)


def _contiguous(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return normal(*shape, dtype=dtype, seed=seed)


LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype, int], Tensor]] = {
    "contiguous": _contiguous,
    "transposed": _transposed,
    "channels_last": _channels_last,
    "half_of_a_row": _half_of_a_row,
    "every_second": _every_second,
    "expanded": _expanded,
    "offset": _offset,
}


@dataclass(frozen=True)
class Case:
    """An activation and the tensor it is applied to."""

    curve: Curve
    dtype: torch.dtype
    shape: tuple[int, ...]
    layout: str = "contiguous"

    def input(self, seed: int = 0) -> Tensor:
        return LAYOUTS[self.layout](self.shape, self.dtype, seed)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "scalar"
        return f"{self.curve.name}-{dtype_name(self.dtype)}-{shape}-{self.layout}"


ARRANGEMENTS = [
    *((shape, "contiguous") for shape in SHAPES),
    *((FOUR_DIMENSIONS, layout) for layout in LAYOUTS if layout != "contiguous"),
]
FEW_ARRANGEMENTS = [((), "contiguous"), ((0,), "contiguous"), ((129,), "contiguous"), (FOUR_DIMENSIONS, "transposed")]


def _cases() -> Iterator[Case]:
    """Every arrangement for one curve, and a few for the others: they share the code that walks over memory."""
    yield from (Case(GELU, dtype, *arrangement) for dtype in DTYPES for arrangement in ARRANGEMENTS)
    others = [curve for curve in FITTED if curve is not GELU]
    yield from (Case(curve, dtype, *few) for curve in others for dtype in DTYPES for few in FEW_ARRANGEMENTS)
    closed_dtypes = (torch.float32, torch.bfloat16)
    closed_arrangements = (*FEW_ARRANGEMENTS, (FOUR_DIMENSIONS, "every_second"))
    for curve in REPRESENTATIVES:
        yield from (Case(curve, dtype, *few) for dtype in closed_dtypes for few in closed_arrangements)


CASES = list(_cases())

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_curve = pytest.mark.parametrize("curve", CURVES.values(), ids=lambda curve: curve.name)
each_gated = pytest.mark.parametrize("curve", GATED, ids=lambda curve: curve.name)
each_fitted = pytest.mark.parametrize("curve", FITTED, ids=lambda curve: curve.name)
each_operation = pytest.mark.parametrize("curve", [GELU, *REPRESENTATIVES], ids=lambda curve: curve.name)
each_closed = pytest.mark.parametrize("curve", CLOSED, ids=lambda curve: curve.name)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
each_product_dtype = pytest.mark.parametrize("dtype", PRODUCT_DTYPES, ids=dtype_name)
each_half_dtype = pytest.mark.parametrize("dtype", HALF_DTYPES, ids=dtype_name)
each_saving = pytest.mark.parametrize("saving", SAVINGS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)) or "scalar")


def all_numbers(dtype: torch.dtype) -> Tensor:
    """All 65,536 bit patterns of a half-precision dtype."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def exact_derivative(curve: Curve, x: Tensor) -> Tensor:
    """``f'(x)`` in float64."""
    return curve.derivative(x.detach().double())


def last_place(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between adjacent numbers of `dtype` at these float64 values."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.abs()).exponent - 1
    return torch.ldexp(torch.full_like(value, info.eps), exponent.clamp(min=round(math.log2(info.smallest_normal))))


def output_and_gradients(
    function: Callable[..., Tensor], *inputs: Tensor, dy: Tensor | None = None
) -> tuple[Tensor, ...]:
    """``function(*inputs)`` and the gradients of the inputs, leaves of their layouts, for ``dy`` (ones where None)."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    return y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) if dy is None else dy)


def output_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same of a function of one tensor."""
    y, dx = output_and_gradients(function, x, dy=dy)
    return y, dx


def assert_gradient_within(bar: ErrorBar, dx: Tensor, dy: Tensor, exact: Tensor) -> None:
    """``dx`` is ``dy * exact`` within the bar, and the rounding of the product to its dtype."""
    expected = dy.double() * exact
    info = torch.finfo(dx.dtype)
    tolerance = dy.double().abs() * bar.max + expected.abs() * info.eps / 2 + info.smallest_normal * info.eps
    excess = (dx.double() - expected).abs() - tolerance
    assert (excess <= 0).all(), f"off by {excess.max():.2g} more than {bar.max:g}"


def native_gate(curve: Curve) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, u: curve.forward(a) * u


def inverted_gate(curve: Curve, saving: Saving = "output") -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, u: gate(a, u, curve, saving)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs the block on this many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def contiguous_copies() -> torch.autograd.graph.saved_tensors_hooks:
    """Saves copies that forget the layout, as compression and serialisation do."""
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.clone(memory_format=torch.contiguous_format), lambda tensor: tensor
    )


@contextmanager
def record_saved() -> Iterator[list[Tensor]]:
    """The tensors that autograd saves inside the block."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
