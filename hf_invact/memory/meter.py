"""Counts the bytes that a forward pass keeps for the backward pass."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from .calls import is_checkpoint_saving, running_modules, unseen, watch_outputs
from .compiled import compiled_modules, is_within
from .storages import storages, tensor_bytes


@dataclass(frozen=True)
class SavedStorage:
    """One distinct storage that is kept for the backward pass.

    Attributes:
        bytes: the whole storage's size (a view keeps all of its base alive).
        saved_by: qualified name of the module that was running when it was first saved ("" is the model itself).
        output_of: qualified name of the module that returned it just before, if any.
        by_checkpoint: whether a checkpoint keeps it, to compute a layer again from (torch.utils.checkpoint).
    """

    bytes: int
    saved_by: str
    output_of: str | None
    by_checkpoint: bool = False


class SavedActivations:
    """Measures what is kept for the backward pass of everything computed inside the context.

    Counts distinct storages that autograd saves, without the model's parameters and buffers. Where storages are
    also released inside the context (by a backward pass), the figures are those of the moment at which most was kept.
    Tensors that an operation hides from autograd's hooks, by keeping them as plain attributes, are not seen.
    Parameters may be sharded (FSDP, ZeRO-3): what a running module has gathered of them does not count either, and is
    kept alive no longer than without the meter.

    Of sparse tensors the indices and values count, of subclasses that wrap others (DTensor, jagged tensors, quantized
    weights) the local or inner tensors. What shows no storage (MKL-DNN) does not count.

    The backward pass is the one without the meter, bit for bit. Copies and pickles of the model that are made
    inside the context are unmetered, and other threads that run the model are neither counted nor disturbed. So is
    what `torch.compile` has compiled: modules inside of it are not told apart.

    The figures may be read after the context is left. It may be entered again, one time after the other; what was
    kept before and still is counts then as well.

    Args:
        model: whose modules the figures are told by.
        ignore: further tensors that do not count, such as the input.

    Raises:
        RuntimeError: it is entered while it is active.

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
        self._ignored = list(ignore)
        # Held: a forward pass may replace a buffer or a shard, whose key would pass to another storage.
        self._own: dict[int, UntypedStorage] = {}
        self._names: dict[nn.Module, str] = {}
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._threads: set[int] = set()
        self._returned: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._kept: dict[int, SavedStorage] = {}
        self._holders: dict[weakref.ref[_Holder], list[int]] = {}
        self._holder_count: dict[int, int] = {}
        self._released: deque[weakref.ref[_Holder]] = deque()
        self._now = 0
        self._most = 0
        self._records: tuple[SavedStorage, ...] = ()
        self._output_bytes: dict[str, int] = {}

    def __enter__(self) -> SavedActivations:
        if self._names:
            raise RuntimeError("SavedActivations is active already: enter another one, or leave this one first")
        self._own = storages(*self._model.parameters(), *self._model.buffers(), *self._ignored)
        self._names = {module: name for name, module in self._model.named_modules()}
        self._threads = {threading.get_ident()}
        compiled = compiled_modules(self._model)
        with ExitStack() as stack:
            stack.callback(self._forget)
            for module, name in self._names.items():
                # What no other module accounts for is the model's own, and it may be running already.
                if name and not any(is_within(name, outer) and name != outer for outer in compiled):
                    stack.callback(watch_outputs(module, partial(self._note_output, name)))
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(unseen(self._save), unseen(_Holder.unwrap)))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def records(self) -> tuple[SavedStorage, ...]:
        """One record for each distinct storage."""
        with self._lock:
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

    @property
    def is_released(self) -> bool:
        """Whether something was kept, and nothing of it is any more: a backward pass is over."""
        with self._lock:
            self._settle()
            return self._most > 0 and self._now == 0

    def _forget(self) -> None:
        self._names, self._own, self._returned = {}, {}, {}

    def _note_output(self, name: str, output: Any) -> None:
        # Saved-tensor hooks are of a thread, and these calls of all. (Autograd has threads of its own.)
        if isinstance(output, Tensor) and threading.get_ident() in self._threads:
            self._output_bytes[name] = self._output_bytes.get(name, 0) + tensor_bytes(output)
            for key in storages(output):
                if self._producer(key) is None:  # else an inner module returned it already
                    self._returned[key] = (weakref.ref(output), name)

    def _save(self, tensor: Tensor) -> _Holder:
        running = list(running_modules())
        found = storages(tensor)
        with self._lock:
            self._threads.add(threading.get_ident())
            self._settle()
            counted = {key: storage for key, storage in found.items() if key not in self._own}
            if not counted.keys() <= self._kept.keys():
                gathered = storages(*_parameters(running or [self._model]))
                counted = {key: storage for key, storage in counted.items() if key not in gathered}
            holder = _Holder(tensor, list(counted.values()))
            for key, storage in counted.items():
                if key not in self._kept:
                    saved_by = next((self._names[module] for module in running if module in self._names), "")
                    by_checkpoint = is_checkpoint_saving()
                    self._kept[key] = SavedStorage(storage.nbytes(), saved_by, self._producer(key), by_checkpoint)
                    self._now += self._kept[key].bytes
                self._holder_count[key] = self._holder_count.get(key, 0) + 1
            if counted:
                # Only noted, for it may happen at any moment and in any thread; `_settle` sees to it.
                self._holders[weakref.ref(holder, self._released.append)] = list(counted)
        return holder

    def _producer(self, key: int) -> str | None:
        """The module that returned this storage. Its tensor must be alive, else the key may have passed to another."""
        if key not in self._returned:
            return None
        reference, name = self._returned[key]
        return name if reference() is not None else None

    def _settle(self) -> None:
        """Give up what has been released since something was saved last."""
        if self._released:
            self._remember()
        while self._released:
            for key in self._holders.pop(self._released.popleft()):
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

    It gives back what autograd would have kept. That is the very tensor where it has no history: the data of a
    parameter may be freed and gathered again. Others are detached: an operation that saves its own output would else
    be held by what it holds, and where no backward pass frees the graph, nothing would (Python's garbage collector
    does not see it), weights included.
    """

    __slots__ = ("__weakref__", "storages", "tensor", "version")

    def __init__(self, tensor: Tensor, storages: list[UntypedStorage]) -> None:
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may refuse what it does not know
            self.tensor = tensor if tensor.is_leaf else tensor.detach()
            self.version = tensor._version
        self.storages = storages  # which a detached fake tensor does not share

    def unwrap(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            version = self.tensor._version
        if version != self.version:  # autograd itself checks this only where there are no hooks
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{self.tensor.dtype} tensor is at version {version}; expected version {self.version} instead"
            )
        return self.tensor


def _parameters(running: list[nn.Module]) -> Iterable[Tensor]:
    """Those that the running modules (the innermost first) may have gathered by now."""
    for module in running[:1]:
        yield from module.parameters()
    for module in running[1:]:
        yield from module.parameters(recurse=False)  # such as FSDP1's, of which modules inside have views
