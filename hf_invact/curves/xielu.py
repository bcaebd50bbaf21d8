"""The inverse of xIELU, whose parameters are learned (arXiv 2411.13010).

``f(x) = alpha_p x^2 + beta x`` above 0 and ``alpha_n (exp(x) - 1 - x) + beta x`` below, where ``alpha_n > beta``. With
``k = 1 - beta / alpha_n`` it turns at ``x_min = log(k) < 0``, and in the distance from there, ``u = x - x_min``, the
lower part is one curve for all parameters: ``f = y_min + alpha_n k (exp(u) - 1 - u)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rounding import mean_root

# Newton steps in `_distance` that reach the last place for every argument.
_STEPS = {torch.float32: 4, torch.float64: 5}


class XIELU:
    """xIELU for given parameters, tensors of shape (1,), all float32 or all float64. It never waits for their device.

    Attributes:
        x_min: the turning point, shape (1,). (If ``alpha_n`` was rounded to ``beta`` there is none, and this is so far
            left that the output is constant there.)
    """

    def __init__(self, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor) -> None:
        self.alpha_p, self.alpha_n, self.beta = alpha_p, alpha_n, beta
        # alpha_n k, the second derivative at the turning point.
        self.curvature = torch.maximum(alpha_n - beta, alpha_n * (torch.finfo(alpha_n.dtype).eps / 2))
        self.x_min = (self.curvature / alpha_n).log()
        self.y_min = -(beta + self.curvature * self.x_min)

    def invert(self, y: Tensor, is_left: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``x`` and ``f'(x)`` from the output and the side of the turning point.

        Args:
            y: the output, in the dtype of the parameters.
            is_left: whether ``x < x_min``, bool, shaped as `y`.
            dtype: the output has the rounding errors of a computation in this dtype, step by step.

        Returns:
            Two tensors shaped as `y`. NaN for a NaN; an infinite output has no `x`.
        """
        rise = (y - self.y_min).div_(self.curvature).clamp_(max=torch.finfo(y.dtype).max / 8)
        distance = _distance(mean_root(rise, self._output_error(dtype) / self.curvature), is_left)
        below, slope_below = distance + self.x_min, torch.expm1(distance).mul_(self.curvature)
        # The square root of the discriminant, which is the derivative; written so that y * alpha_p cannot overflow.
        slope_above = torch.hypot(y.clamp(min=0.0).sqrt_().mul_(2 * self.alpha_p.sqrt()), self.beta)
        above = y / (slope_above + self.beta).mul_(0.5)
        is_above = (y >= 0).logical_and_(~is_left)
        return torch.where(is_above, above, below), torch.where(is_above, slope_above, slope_below)

    def _output_error(self, dtype: torch.dtype) -> Tensor:
        """The error of an output at the turning point, whose terms are rounded one by one."""
        linear, curved = self.beta * self.x_min, self.beta + self.alpha_n * self.x_min
        return (linear.square() + 2 * curved.square()).sqrt() * (torch.finfo(dtype).eps / 4)  # the rms of each rounding


def _distance(root: Tensor, is_left: Tensor) -> Tensor:
    """Solves ``exp(u) - 1 - u = root^2``, for negative ``u`` where `is_left`, by Newton's method. Overwrites `root`."""
    root.clamp_(min=torch.finfo(root.dtype).eps)  # at 0 a step would be 0 / 0
    rise, s = root.square(), root.mul_(2**0.5)
    # Both start as u = s - s^2 / 6 + s^3 / 36 - ... near 0, and the left one from its asymptote far away.
    left = torch.minimum((s / 36).add_(1 / 6).mul_(s).add_(1).mul_(s), rise + 1).neg_()
    u = torch.where(is_left, left, (s / 3).add_(1).mul_(s).log1p_())
    for _ in range(_STEPS[u.dtype]):
        slope = torch.expm1(u)
        u -= (slope - u).sub_(rise).div_(slope)
    return u
