"""Makes a curve from a function written in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import fitting
from .record import Curve
from .shape import Function, Shape, UnsuitableActivation, examine, grid


def fit_curve(name: str, forward: Function, derivative: Function | None, max_error: float) -> Curve:
    """Fit the derivative of a function as a function of its output. Runs on the CPU, whatever the default device.

    Args:
        forward: ``f``, element-wise, for tensors of any floating dtype.
        derivative: ``f'``; None takes autograd's.
        max_error: the largest error allowed of the fitted derivative, without any rounding of the output.

    Raises:
        UnsuitableActivation: the function cannot be inverted (see `shape.examine`), or not with an error that small.
    """
    derivative = derivative or _Autograd(forward)
    with torch.device("cpu"):
        shape = examine(forward, derivative)
        fit = fitting.fit(shape.x_min, shape.y_min, *_branches(forward, derivative, shape))
    if not fit.fine.error <= max_error:
        raise UnsuitableActivation(
            f"the best fit of its derivative is off by {fit.fine.error:.2g}, more than {max_error:g}"
        )
    return Curve(name, forward, derivative, fit)


@dataclass(frozen=True)
class _Autograd:
    """``f'`` of an element-wise function, for tensors of any shape."""

    forward: Function

    def __call__(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.forward(leaf).sum(), leaf)
        return gradient


def _root(rise: Tensor) -> Tensor:
    return rise.clamp(min=0.0).sqrt()


def _spread(start: float, end: float, root: Function) -> Tensor:
    """Inputs from start to end of a branch, evenly spaced in the root, and denser towards both ends."""
    inside = grid()
    inside = inside[(inside > min(start, end)) & (inside < max(start, end))]
    ends = torch.tensor([[start], [end]], dtype=torch.float64)
    x = torch.cat([ends[0], inside if start < end else inside.flip(0), ends[1]])
    roots = root(x).numpy()
    shares = (1 - np.cos(np.pi * np.arange(fitting.POINTS) / (fitting.POINTS - 1))) / 2
    return torch.from_numpy(np.interp(roots[0] + (roots[-1] - roots[0]) * shares, roots, x.numpy()))


def _branches(forward: Function, derivative: Function, shape: Shape) -> tuple[fitting.Branch, fitting.Branch | None]:
    def sample(start: float, end: float) -> fitting.Branch:
        x = _spread(start, end, lambda x: _root(forward(x) - shape.y_min))
        y = forward(x)
        return fitting.Branch(_root(y - shape.y_min).numpy(), y.numpy(), derivative(x).numpy())

    if shape.x_min is None:
        return sample(shape.left_end, shape.right_end), None
    return sample(shape.x_min, shape.right_end), sample(shape.x_min, shape.left_end)
