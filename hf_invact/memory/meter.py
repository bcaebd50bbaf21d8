"""Counts the bytes that a forward pass keeps for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SavedStorage:
    """One distinct storage that is kept for the backward pass.

    Attributes:
        bytes: the whole storage's size (a view keeps all of its base alive).
        saved_by: qualified name of the module that was running when it was first saved ("" is the model itself).
        output_of: qualified name of the module that returned it just before, if any.
    """

    bytes: int
    saved_by: str
    output_of: str | None


class SavedActivations:
    """Measures what is kept for the backward pass of everything computed inside the context.

    Counts distinct storages that autograd saves, without the model's parameters and buffers. Where storages are
    also released inside the context (by a backward pass), the figures are those of the moment at which most was kept.
    Tensors that an operation hides from autograd's hooks, by keeping them as plain attributes, are not seen.
    Parameters may be sharded (FSDP2, ZeRO-3): what a running module has gathered of them does not count either, and is
    not kept alive.

    The figures may be read after the context is left. It can be used once.

    Args:
        model: whose modules the figures are told by.
        ignore: further tensors that do not count, such as the input.

    >>> import torch
    >>> from hf_invact.memory import SavedActivations
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    >>> with SavedActivations(model) as saved:
    ...     loss = model(torch.randn(4, 8)).sum()
    >>> saved.total_bytes  # the inputs of the three modules, float32
    1152
    >>> saved.by_module
    {'0': 128, '1': 512, '2': 512}
    """

    def __init__(self, model: nn.Module, ignore: Iterable[Tensor] = ()) -> None:
        self._model = model
        own = [*model.parameters(), *model.buffers(), *ignore]
        # With the storages: a shard may be replaced while we measure, and its key would pass to another tensor.
        self._own = {_key(tensor): tensor.untyped_storage() for tensor in own}
        self._stack = ExitStack()
        self._running: list[tuple[str, nn.Module]] = [("", model)]
        self._returned: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._kept: dict[int, SavedStorage] = {}
        self._holders: dict[weakref.ref[_Holder], int] = {}
        self._holder_count: dict[int, int] = {}
        self._now = 0
        self._most = 0
        self._records: tuple[SavedStorage, ...] = ()
        self._output_bytes: dict[str, int] = {}

    def __enter__(self) -> SavedActivations:
        for name, module in self._model.named_modules():
            if name == "":
                continue  # what no other module accounts for is the model's own, and it may be running already
            before = module.register_forward_pre_hook(self._enter_module(name))
            after = module.register_forward_hook(self._leave_module(name), always_call=True)
            self._stack.callback(before.remove)
            self._stack.callback(after.remove)
        self._stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda holder: holder.unwrap()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._remember()
        self._own.clear()
        self._returned.clear()

    @property
    def records(self) -> tuple[SavedStorage, ...]:
        """One record for each distinct storage."""
        self._remember()
        return self._records

    @property
    def total_bytes(self) -> int:
        """Bytes kept for the backward pass."""
        return sum(record.bytes for record in self.records)

    @property
    def by_module(self) -> dict[str, int]:
        """Bytes by the qualified name of the module that saved them first, in the order of saving."""
        totals: dict[str, int] = {}
        for record in self.records:
            totals[record.saved_by] = totals.get(record.saved_by, 0) + record.bytes
        return totals

    @property
    def output_bytes(self) -> Mapping[str, int]:
        """Size of each module's output, kept or not, summed over its calls (modules that return one tensor)."""
        return self._output_bytes

    def _enter_module(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            self._running.append((name, module))

        return hook

    def _leave_module(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(output, Tensor):
                self._output_bytes[name] = self._output_bytes.get(name, 0) + output.numel() * output.element_size()
                if self._producer(_key(output)) is None:  # else an inner module returned it already
                    self._returned[_key(output)] = (weakref.ref(output), name)

        return hook

    def _save(self, tensor: Tensor) -> _Holder | _GatheredHolder:
        key = _key(tensor)
        if key in self._own:
            return _Holder(tensor)
        if key not in self._kept and (gathered := self._gathered(key)) is not None:
            return _GatheredHolder(gathered, tensor)
        holder = _Holder(tensor)
        if key not in self._kept:
            self._kept[key] = self._record(tensor, key)
            self._now += self._kept[key].bytes
        self._holders[weakref.ref(holder, self._release)] = key
        self._holder_count[key] = self._holder_count.get(key, 0) + 1
        return holder

    def _gathered(self, key: int) -> Tensor | None:
        """The running module's parameter that has this storage just now, and had another one before."""
        _, module = self._running[-1]
        return next((parameter for parameter in module.parameters() if _key(parameter) == key), None)

    def _record(self, tensor: Tensor, key: int) -> SavedStorage:
        saved_by, _ = self._running[-1]
        return SavedStorage(tensor.untyped_storage().nbytes(), saved_by, self._producer(key))

    def _producer(self, key: int) -> str | None:
        """The module that returned this storage. Its tensor must be alive, else the key may have passed to another."""
        if key not in self._returned:
            return None
        reference, name = self._returned[key]
        return name if reference() is not None else None

    def _release(self, reference: weakref.ref[_Holder]) -> None:
        self._remember()
        key = self._holders.pop(reference)
        self._holder_count[key] -= 1
        if self._holder_count[key] == 0:
            del self._holder_count[key]
            self._now -= self._kept.pop(key).bytes

    def _remember(self) -> None:
        if self._now > self._most:
            self._most = self._now
            self._records = tuple(self._kept.values())


class _Holder:
    """Stands for a saved tensor in the graph. It dies with the graph's node, which is how a release is noticed.

    The tensor is detached: an operation that saves its own output would else be held by what it holds, and where no
    backward pass frees the graph, nothing would (Python's garbage collector does not see it), weights included.
    """

    __slots__ = ("__weakref__", "storage", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.storage = tensor.untyped_storage()  # which a detached fake tensor does not share

    def unwrap(self) -> Tensor:
        return self.tensor


class _GatheredHolder:
    """Stands for a saved view of a parameter that is gathered for the forward pass, and again for the backward pass.

    It holds the parameter, not what has been gathered: ZeRO-3 frees that in between.
    """

    __slots__ = ("offset", "parameter", "size", "stride")

    def __init__(self, parameter: Tensor, view: Tensor) -> None:
        self.parameter = parameter
        self.size, self.stride = view.size(), view.stride()
        self.offset = view.storage_offset() - parameter.storage_offset()

    def unwrap(self) -> Tensor:
        parameter = self.parameter.detach()
        return parameter.as_strided(self.size, self.stride, parameter.storage_offset() + self.offset)


def _key(tensor: Tensor) -> int:
    """Identifies a storage while it lives. (`data_ptr` would not: it is 0 for fake and empty tensors.)"""
    key: int = tensor.untyped_storage()._cdata
    return key
