"""The memory that this package's kernels on a CPU take while they run, beyond their results."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from ...ops.operators.library import KERNELS
from .storages import LiveStorages

LARGEST = 1 << 28
"""Bytes of an operator's tensors. Of larger ones it is not measured: kernels compute in pieces, so it is little beside
them."""


class _Like(NamedTuple):
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.size.numel() * self.dtype.itemsize

    def zeros(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype).zero_()


class _NewStorages(LiveStorages):
    """Follows what is allocated inside, and nothing that was there before."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.ignore(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return super().__torch_dispatch__(func, types, args, kwargs)


def workspace(operator: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Bytes that an operator takes while it runs; 0 for one of PyTorch's.

    It is run once for tensors like these, on zeros.
    """
    if operator not in KERNELS:
        return 0
    given = {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)}
    described = {name: _described(value) for name, value in (given | dict(kwargs)).items()}
    if sum(each.bytes for each in described.values() if isinstance(each, _Like)) > LARGEST:
        return 0
    return _measured(operator, tuple(described.items()))


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Like(value.size(), value.stride(), value.dtype)
    return tuple(value) if isinstance(value, list) else value


@cache
def _measured(operator: OpOverload, described: tuple[tuple[str, Any], ...]) -> int:
    kernel, storages = KERNELS[operator], _NewStorages()
    with _disable_current_modes(), torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        given = {name: each.zeros() if isinstance(each, _Like) else each for name, each in described}
        kernel(**given)  # makes the tables and buffers that it keeps
        with storages:
            results = kernel(**given)
    taken = storages.peak("")[None]
    storages.mark(results if isinstance(results, tuple) else [results], "results")
    storages.begin("afterwards")
    return taken - storages.peak("afterwards").get("results", 0)
