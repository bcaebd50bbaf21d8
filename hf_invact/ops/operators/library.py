"""Registers operators with PyTorch, which compilers take for one opaque step each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

NAMESPACE = "hf_invact"
try:
    LIBRARY = torch.library.Library(NAMESPACE, "DEF")
except RuntimeError as error:
    raise ImportError(
        f"PyTorch already has operators in the namespace {NAMESPACE!r}: another copy of this package is imported in "
        f"this process. Import only one of the two, or restart Python. PyTorch says: {error}"
    ) from error

KERNELS: dict[OpOverload, Callable[..., Any]] = {}
"""What computes each operator, as `define` was given it."""


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any], *tags: torch.Tag) -> OpOverload:
    """Register an operator, without derivatives.

    Args:
        schema: name, arguments and results, as `torch.library.Library.define` reads them.
        kernel: computes the results, for tensors on any device.
        fake: returns tensors with the shapes, dtypes and strides of the results.
        tags: what else compilers have to know.
    """
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    name = schema.partition("(")[0]
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    operator: OpOverload = getattr(getattr(torch.ops, NAMESPACE), name).default
    KERNELS[operator] = kernel
    return operator
