"""The activations as modules without parameters, and PyTorch's norms.

>>> import torch, hf_invact
>>> torch.nn.Sequential(torch.nn.Linear(8, 32), hf_invact.nn.GELU(approximate="tanh"))
Sequential(
  (0): Linear(in_features=8, out_features=32, bias=True)
  (1): GELU(curve='gelu_tanh', backend='auto')
)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import curves, functional
from .curves import Curve
from .ops import AUTO, NormSaving, check_backend, check_norm_saving, invert


class InvertedActivation(torch.nn.Module):
    """Applies an activation, saving its output and one bit per element for backward.

    Args:
        curve: the activation.
        backend: a backend's name, or "auto".

    Raises:
        ValueError: unknown backend.
    """

    def __init__(self, curve: Curve, backend: str = AUTO) -> None:
        super().__init__()
        check_backend(backend)
        self.curve = curve
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return invert(input, self.curve, self.backend)

    def extra_repr(self) -> str:
        return f"curve={self.curve.name!r}, backend={self.backend!r}"


class GELU(InvertedActivation):
    """`torch.nn.GELU`, saving its output and one bit per element."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none", *, backend: str = AUTO) -> None:
        known = {"none": curves.GELU, "tanh": curves.GELU_TANH}
        if approximate not in known:
            raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
        super().__init__(known[approximate], backend)


class SiLU(InvertedActivation):
    """`torch.nn.SiLU`, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.SILU, backend)


class QuickGELU(InvertedActivation):
    """``x * sigmoid(1.702 x)``, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.QUICK_GELU, backend)


class Mish(InvertedActivation):
    """`torch.nn.Mish`, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.MISH, backend)


class Hardswish(InvertedActivation):
    """`torch.nn.Hardswish`, saving its output and one bit per element."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.HARDSWISH, backend)


class Softplus(InvertedActivation):
    """`torch.nn.Softplus`, saving its output alone."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0, *, backend: str = AUTO) -> None:
        super().__init__(curves.softplus(beta, threshold), backend)


class ELU(InvertedActivation):
    """`torch.nn.ELU`, saving its output alone."""

    def __init__(self, alpha: float = 1.0, *, backend: str = AUTO) -> None:
        super().__init__(curves.elu(alpha), backend)


class SELU(InvertedActivation):
    """`torch.nn.SELU`, saving its output alone."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.selu(), backend)


class LeakyReLU(InvertedActivation):
    """`torch.nn.LeakyReLU`, saving its output alone."""

    def __init__(self, negative_slope: float = 0.01, *, backend: str = AUTO) -> None:
        super().__init__(curves.leaky_relu(negative_slope), backend)


class ReLU6(InvertedActivation):
    """`torch.nn.ReLU6`, saving its output alone."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.RELU6, backend)


class ReLUSquared(InvertedActivation):
    """``relu(x) ** 2``, saving its output alone."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.RELU2, backend)


class Laplace(InvertedActivation):
    """Transformers' laplace activation, saving its output alone."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.LAPLACE, backend)


class SqrtSoftplus(InvertedActivation):
    """``sqrt(softplus(x))``, saving its output alone."""

    def __init__(self, *, backend: str = AUTO) -> None:
        super().__init__(curves.SQRTSOFTPLUS, backend)


class RMSNorm(torch.nn.RMSNorm):
    """`torch.nn.RMSNorm`, saving its output and two or more numbers per row.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as those of `torch.nn.RMSNorm`.
        saving: what is saved: see `functional.rms_norm`.
        backend: a backend's name, or "auto".

    Raises:
        ValueError: unknown `saving` or `backend`.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        saving: NormSaving = "output",
        backend: str = AUTO,
    ) -> None:
        check_norm_saving(saving)
        check_backend(backend)
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.saving: NormSaving = saving
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return functional.rms_norm(
            input, self.normalized_shape, self.weight, self.eps, saving=self.saving, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, saving={self.saving!r}, backend={self.backend!r}"


class LayerNorm(torch.nn.LayerNorm):
    """`torch.nn.LayerNorm`, saving its output and two or more numbers per row.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as those of `torch.nn.LayerNorm`.
        saving: what is saved: see `functional.layer_norm`.
        backend: a backend's name, or "auto".

    Raises:
        ValueError: unknown `saving` or `backend`.
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        saving: NormSaving = "output",
        backend: str = AUTO,
    ) -> None:
        check_norm_saving(saving)
        check_backend(backend)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.saving: NormSaving = saving
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return functional.layer_norm(
            input, self.normalized_shape, self.weight, self.bias, self.eps, saving=self.saving, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, saving={self.saving!r}, backend={self.backend!r}"
