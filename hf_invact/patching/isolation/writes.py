"""Undoes what a forward pass writes to weights and to large buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from .isolate import tensors_in

LARGE = 1 << 20  # bytes


class Writes:
    """Copies the storage of a parameter or a large buffer before the first operation that writes to it.

    So nothing is copied of a model that does not write to its weights, however large these are.

    Operations that PyTorch does not see (a kernel of another library, NumPy) are missed.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        large = ((name, buffer) for name, buffer in tensors_in(modules, "_buffers") if is_large(buffer))
        weights = (*tensors_in(modules, "_parameters"), *large)
        self._names = {weight.untyped_storage()._cdata: name for name, weight in weights}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def note(self, operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """See an operation before it runs."""
        for tensor in _written(operation, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata in self._names and storage._cdata not in self._before:
                self._before[storage._cdata] = storage, storage.clone()

    def steps(self) -> Iterator[tuple[tuple[str, ...], Callable[[], object]]]:
        """What was written to, and how to restore it."""
        for key, (storage, before) in self._before.items():
            yield ("the values of", self._names[key]), partial(storage.copy_, before)


def is_large(tensor: Tensor) -> bool:
    """Whether a tensor is copied only once something writes to it. Quantized weights may be buffers."""
    return tensor.numel() * tensor.element_size() > LARGE


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    if not isinstance(func, torch._ops.OpOverload) or not func._schema.is_mutable:
        return
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, Tensor) and not isinstance(each, FakeTensor):
                yield each
