"""The plain PyTorch backend: cache-sized pieces, and buffers that are reused from piece to piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..curves import ClosedForm, Curve, Fit
from .layout import flat, with_layout
from .packing import BITS, pack, packed_size, unpack

# Elements in a piece, a multiple of 8. On a CPU its buffers should stay in the cache, and every operation pays for
# starting the threads; on other devices an operation costs a launch, so pieces only bound the temporary memory.
CPU_PIECE = 1 << 18
DEVICE_PIECE = 1 << 24


def forward(x: Tensor, curve: Curve) -> tuple[Tensor, Tensor | None]:
    """Evaluate the activation and note which inputs lie left of its turning point.

    Args:
        x: any shape, layout and floating dtype.

    Returns:
        ``y``, shaped as ``x``, and the side bits in ``y``'s memory order, uint8, shape (ceil(numel / 8),); None for an
        activation without a turning point.
    """
    y = curve.forward(x)
    if curve.x_min is None:
        return y, None
    return y, sides(x, y, curve.threshold(x.dtype), with_infinity=isinstance(curve.inverse, Fit))


def sides(x: Tensor, y: Tensor, threshold: float | Tensor, *, with_infinity: bool = False) -> Tensor:
    """Which inputs lie left of the threshold, as bits in the memory order of ``y``, uint8, shape (ceil(numel / 8),).

    Args:
        threshold: a number, or a tensor of shape (1,).
        with_infinity: count an infinite input as left.
    """
    side = torch.empty(packed_size(x.numel()), dtype=torch.uint8, device=x.device)
    inputs = flat(with_layout(x, y.size(), y.stride()))
    flags: Tensor | None = None
    for start, stop in pieces(inputs):
        padded = packed_size(stop - start) * BITS
        if flags is None or flags.numel() != padded:
            flags = torch.zeros(padded, dtype=torch.bool, device=x.device)
        piece = inputs[start:stop]
        torch.lt(piece, threshold, out=flags[: stop - start])
        if with_infinity:
            # An infinite input has no gradient (the formula in x gives NaN), but a finite one may overflow to the same
            # output; on the left side an infinite output gives NaN.
            flags[: stop - start].logical_or_(piece == math.inf)
        pack(flags, out=side[start // BITS : packed_size(stop)])
    return side


def backward(dy: Tensor, y: Tensor, side: Tensor | None, curve: Curve) -> Tensor:
    """``dy * f'(x)`` from the output and the side bits.

    Args:
        dy: gradient of ``y``, of its shape, any layout and floating dtype.
        y: the output, dense.
        side: as `forward` returned it.

    Returns:
        Gradient of ``x``, with the shape and layout of ``y`` and the dtype of ``dy``. Computed in float32 (float64 for
        float64) and rounded once.
    """
    dx = torch.empty_strided(y.size(), y.stride(), dtype=dy.dtype, device=y.device)
    gradients, outputs, results = flat(with_layout(dy, y.size(), y.stride())), flat(y), flat(dx)
    slopes = slopes_of(curve, y)
    for start, stop in pieces(outputs):
        is_left = None if side is None else unpack(side[start // BITS : packed_size(stop)])[: stop - start]
        torch.mul(gradients[start:stop], slopes(outputs[start:stop], is_left), out=results[start:stop])
    return dx


def slopes_of(curve: Curve, like: Tensor) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What evaluates ``D(y, is_left)`` on pieces of a tensor, in float32 (float64 for float64).

    Its result, shaped as the piece, is valid until the next call.
    """
    if isinstance(curve.inverse, ClosedForm):
        slope, wide = curve.inverse.slope, dtype_inside(like)
        return lambda y, is_left: slope(y.to(wide), is_left, like.dtype)
    workspace: _Workspace | None = None

    def fitted(y: Tensor, is_left: Tensor | None) -> Tensor:
        nonlocal workspace
        assert is_left is not None
        if workspace is None or workspace.size != y.numel():
            workspace = _Workspace(y.numel(), like, curve)
        return workspace.derivative(y, is_left)

    return fitted


def dtype_inside(tensor: Tensor) -> torch.dtype:
    """What a gradient is computed in before it is rounded: float32, and float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class _Workspace:
    """Evaluates a curve's fitted derivative on pieces of one size, in buffers that all of them share."""

    def __init__(self, size: int, like: Tensor, curve: Curve) -> None:
        assert isinstance(curve.inverse, Fit)
        self.size = size
        self.dtype = dtype_inside(like)
        self.curve, self.fit = curve, curve.inverse
        # Constants for fake tensors must not outlive their mode.
        constants = _cached_constants if type(like) is Tensor else _Constants
        self.constants = constants(self.fit, like.device, self.dtype)
        self.error = curve.output_error(like.dtype)
        names = ("wide", "root", "right", "left", "denominator")
        self.buffers = {name: torch.empty(size, dtype=self.dtype, device=like.device) for name in names}
        self.bits_dtype = torch.int64 if self.dtype == torch.float64 else torch.int32
        self.mask = torch.empty(size, dtype=self.bits_dtype, device=like.device)

    def derivative(self, y: Tensor, is_left: Tensor | None) -> Tensor:
        """``D(y, side)``, shape (size,), in a buffer that the next call overwrites."""
        wide = self._widen(y)
        rise = self._rise(wide)
        if is_left is None:
            return self._right(self._mean_root(rise))
        self.mask.copy_(is_left).neg_()
        root = self._mean_root(self._select(self._rise_of_logarithm(wide), rise))
        slope = self._select(self._left(wide, root), self._right(root))
        if self.curve.limits is not None:
            low, high = self.curve.limits
            slope.masked_fill_((y <= low) | (y >= high), 0.0)
        return slope

    def _select(self, left: Tensor, right: Tensor) -> Tensor:
        """`torch.where`, written to `right`, on the bits of the numbers: nine times faster on a CPU."""
        difference, result = left.view(self.bits_dtype), right.view(self.bits_dtype)
        result.bitwise_xor_(difference.bitwise_xor_(result).bitwise_and_(self.mask))
        return right

    def _widen(self, y: Tensor) -> Tensor:
        scaled = self.curve.scale != 1.0
        wide = self.buffers["wide"].copy_(y) if scaled or y.dtype != self.dtype else y
        return wide.mul_(self.curve.scale) if scaled else wide

    def _rise(self, y: Tensor) -> Tensor:
        return torch.sub(y, self.constants.y_min_head, out=self.buffers["root"]).sub_(self.constants.y_min_tail)

    def _rise_of_logarithm(self, y: Tensor) -> Tensor:
        fit = self.fit
        ratio = torch.mul(y, 1.0 / fit.y_min, out=self.buffers["left"])
        # A logarithm of what is not positive is slow, and the other side needs none.
        return ratio.clamp_(min=math.exp(fit.left_end**2 / fit.y_min)).log_().mul_(fit.y_min)

    def _mean_root(self, rise: Tensor) -> Tensor:
        """`rounding.mean_root` without new memory; overwrites its argument."""
        highest = torch.add(rise, self.error, out=self.buffers["right"]).clamp_(min=0.0).sqrt_()
        return rise.sub_(self.error).clamp_(min=0.0).sqrt_().add_(highest).mul_(0.5)

    def _left(self, y: Tensor, root: Tensor) -> Tensor:
        # Not clamped to left_end: the logarithm's argument was.
        slope = _polynomial(self.constants.left, root, out=self.buffers["left"]).mul_(y)
        return slope.addcmul_(y, self.constants.zero)  # NaN where y is infinite

    def _right(self, root: Tensor) -> Tensor:
        constants = self.constants
        u = root.clamp_(max=self.fit.right_end).sub_(self.fit.center)
        ratio = _polynomial(constants.right_numerator, u, out=self.buffers["right"])
        return ratio.div_(_polynomial(constants.right_denominator, u, out=self.buffers["denominator"]))


class _Constants:
    """A fit's numbers in the dtype of the evaluation. As tensors where an operation needs them so."""

    def __init__(self, fit: Fit, device: torch.device, dtype: torch.dtype) -> None:
        # Split, so that y - y_min keeps its digits next to the turning point although float32 cannot hold y_min.
        self.y_min_head = torch.tensor(fit.y_min, dtype=dtype, device="cpu").item()
        self.y_min_tail = fit.y_min - self.y_min_head

        def tensors(values: Sequence[float]) -> tuple[Tensor, ...]:
            return tuple(torch.tensor(value, dtype=dtype, device=device) for value in values)

        self.zero = torch.zeros((), dtype=dtype, device=device)
        self.right_numerator = tensors(fit.right_numerator)
        self.right_denominator = tensors(fit.right_denominator)
        self.left = tensors(fit.left)


_cached_constants = lru_cache(maxsize=None)(_Constants)


def _polynomial(coefficients: Sequence[Tensor], u: Tensor, *, out: Tensor) -> Tensor:
    """Horner's scheme, one pass over memory for each coefficient."""
    highest, second, *rest = reversed(coefficients)
    torch.addcmul(second, highest, u, out=out)
    for coefficient in rest:
        torch.addcmul(coefficient, out, u, out=out)
    return out


def pieces(rows: Tensor) -> Iterator[tuple[int, int]]:
    """Start and end of consecutive rows (elements of a flat tensor) of about a piece in all, at least one."""
    size = CPU_PIECE if rows.device.type == "cpu" else DEVICE_PIECE
    step = max(1, size // max(1, math.prod(rows.shape[1:])))
    for start in range(0, rows.size(0), step):
        yield start, min(start + step, rows.size(0))
