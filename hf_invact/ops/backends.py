"""The backends by name, and which of them is used for a tensor."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

AUTO = "auto"
BACKENDS = ("eager", "compile", "triton")  # the folders `eager`, `inductor` and `triton`
ENVIRONMENT_VARIABLE = "HF_INVACT_BACKEND"  # the backend that "auto" stands for
TRITON_DEVICES = ("cuda", "xpu")  # ROCm calls its devices cuda too
NOT_INSTALLED = "the package triton is not installed"


def check_backend(name: str) -> None:
    """Check the name of a backend, or "auto".

    Raises:
        ValueError: unknown name.
        RuntimeError: the package that it needs is not installed.
    """
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; known: {', '.join([AUTO, *BACKENDS])}")
    if name == "triton" and not _triton_is_installed():
        raise _refusal(NOT_INSTALLED)


def choose_backend(name: str, like: Tensor) -> str:
    """The name of the backend for tensors with the device and dtype of this one.

    "auto" stands for the backend that the environment variable HF_INVACT_BACKEND names. If that is not set, it is
    "triton" on the GPUs that Triton supports (CUDA, ROCm, XPU) if it is installed, and "eager" elsewhere.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was chosen by name does not support this tensor.
    """
    check_backend(name)
    chosen = _from_environment() if name == AUTO else name
    if chosen == AUTO:
        has_kernels = like.device.type in TRITON_DEVICES and why_not_triton(like) is None
        return "triton" if has_kernels else "eager"
    reason = why_not_triton(like) if chosen == "triton" else None
    if reason is not None:
        raise _refusal(reason)
    return chosen


def check_device(name: str, parameters: Iterable[Tensor]) -> None:
    """Check that a backend supports a model with these parameters, where they are or where they may be moved.

    On a machine with a GPU that Triton supports, parameters on the CPU may still be moved there. Parameters without
    values (on the meta device, or fake) may be moved anywhere.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend that was chosen by name supports none of the parameters.
    """
    check_backend(name)
    if (_from_environment() if name == AUTO else name) != "triton":
        return
    has_gpu = any(getattr(torch, device).is_available() for device in TRITON_DEVICES)
    movable_from = ("meta", "cpu") if has_gpu else ("meta",)
    reasons = []
    for parameter in parameters:
        reason = why_not_triton(parameter)
        if reason is None or isinstance(parameter, FakeTensor) or parameter.device.type in movable_from:
            return
        reasons.append(reason)
    if reasons:
        raise _refusal(reasons[0])


def why_not_triton(like: Tensor) -> str | None:
    """Why Triton does not support tensors with the device and dtype of this one; None if it does."""
    if not _triton_is_installed():
        return NOT_INSTALLED
    if like.dtype == torch.float64:
        return "its kernels compute in float32, and the tensor is float64"
    if like.device.type not in TRITON_DEVICES and not _triton_interprets():
        return f"it has no kernels for {like.device.type} tensors"
    return None


def _refusal(reason: str) -> RuntimeError:
    return RuntimeError(f"the backend 'triton' was chosen, but {reason}. Choose 'auto', 'compile' or 'eager'")


def _from_environment() -> str:
    name = os.environ.get(ENVIRONMENT_VARIABLE) or AUTO
    if name != AUTO and name not in BACKENDS:
        known = ", ".join([AUTO, *BACKENDS])
        raise ValueError(f"the environment variable {ENVIRONMENT_VARIABLE} is {name!r}; known: {known}")
    return name


@cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _triton_interprets() -> bool:
    """Whether kernels run in Python. Triton reads this setting when kernels are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"
