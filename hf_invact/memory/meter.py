"""Measures the bytes that a forward pass saves for the backward pass."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn

from .compiled import compiled_modules, is_within
from .module_calls import is_checkpoint_saving, not_compiled, running_modules, watch_outputs
from .storages import storages, tensor_bytes


@dataclass(frozen=True)
class SavedStorage:
    """One distinct storage that is saved for the backward pass.

    Attributes:
        bytes: size of the whole storage (a view keeps all of its base alive).
        saved_by: qualified name of the module that was running when it was first saved ("" is the model itself).
        output_of: qualified name of the module that had returned it, if any.
        by_checkpoint: whether it is the input of a checkpoint (torch.utils.checkpoint), which recomputes a layer.
    """

    bytes: int
    saved_by: str
    output_of: str | None
    by_checkpoint: bool = False


class SavedActivations:
    """Measures what is saved for the backward pass of everything computed inside the context.

    Counts the distinct storages that autograd saves, except the model's parameters and buffers. If storages are also
    released inside the context (by a backward pass), the figures are those of the peak. Tensors that an operation keeps
    as plain attributes, hidden from autograd's hooks, are not counted. Parameters may be sharded (FSDP, ZeRO-3): their
    gathered copies do not count either, and live no longer than without the meter.

    Sparse tensors count with their indices and values; subclasses that wrap other tensors (DTensor, jagged tensors,
    quantized weights) with the local or inner tensors. Tensors without an accessible storage (MKL-DNN) do not count.

    The backward pass is bit for bit that of the model without the meter. Copies and pickles made inside the context are
    not metered. Other threads that run the model are neither counted nor disturbed. Code compiled by `torch.compile`
    runs undisturbed too; it is counted as a whole, not by the modules inside.

    The figures may be read after the context. The context may be entered again, one time after the other; what was
    saved before and is still alive then counts too.

    Args:
        model: the figures are by its modules.
        ignore: further tensors that do not count, such as the input.

    Raises:
        RuntimeError: it is already active when entered.

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
        # Referenced, since a forward pass may replace a buffer or a shard, and another storage could reuse the key.
        self._excluded: dict[int, UntypedStorage] = {}
        self._module_names: dict[nn.Module, str] = {}
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._threads: set[int] = set()
        self._outputs: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self._kept: dict[int, SavedStorage] = {}
        self._holders: dict[weakref.ref[_Holder], list[int]] = {}
        self._holder_count: dict[int, int] = {}
        self._dead_holders: deque[weakref.ref[_Holder]] = deque()
        self._current_bytes = 0
        self._peak_bytes = 0
        self._records: tuple[SavedStorage, ...] = ()
        self._output_bytes: dict[str, int] = {}

    def __enter__(self) -> SavedActivations:
        if self._module_names:
            raise RuntimeError("SavedActivations is active already: enter another one, or leave this one first")
        self._module_names = {module: name for name, module in self._model.named_modules()}
        weights = (
            tensor
            for module in self._module_names
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        )
        self._excluded = storages(*weights, *self._ignored)
        self._threads = {threading.get_ident()}
        compiled, note = compiled_modules(self._model), not_compiled(self._note_output)
        with ExitStack() as stack:
            stack.callback(self._end)
            for module, name in self._module_names.items():
                # Not the model itself: what no other module accounts for is its own. It may also be running already.
                if name and not any(is_within(name, outer) and name != outer for outer in compiled):
                    stack.callback(watch_outputs(module, partial(note, name)))
            stack.enter_context(
                torch.autograd.graph.saved_tensors_hooks(not_compiled(self._save), not_compiled(_Holder.unwrap))
            )
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
            self._record_peak()
            return self._records

    @property
    def total_bytes(self) -> int:
        """Bytes saved for the backward pass."""
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
        """Bytes of each module's output, saved or not, summed over its calls (of modules that return one tensor)."""
        return self._output_bytes

    @property
    def is_released(self) -> bool:
        """Whether something was saved, and all of it is released: a backward pass is over."""
        with self._lock:
            self._process_releases()
            return self._peak_bytes > 0 and self._current_bytes == 0

    def _end(self) -> None:
        self._module_names, self._excluded, self._outputs = {}, {}, {}

    def _note_output(self, name: str, output: Any) -> None:
        # Saved-tensor hooks belong to one thread, module calls to all. (Autograd has threads of its own.)
        if isinstance(output, Tensor) and threading.get_ident() in self._threads:
            self._output_bytes[name] = self._output_bytes.get(name, 0) + tensor_bytes(output)
            for key in storages(output):
                if self._producer(key) is None:  # an inner module has not returned it already
                    self._outputs[key] = (weakref.ref(output), name)

    def _save(self, tensor: Tensor) -> _Holder:
        running = list(running_modules())
        found = storages(tensor)
        with self._lock:
            self._threads.add(threading.get_ident())
            self._process_releases()
            counted = {key: storage for key, storage in found.items() if key not in self._excluded}
            if not counted.keys() <= self._kept.keys():
                gathered = storages(*_parameters(running or [self._model]))
                counted = {key: storage for key, storage in counted.items() if key not in gathered}
            holder = _Holder(tensor, list(counted.values()))
            for key, storage in counted.items():
                if key not in self._kept:
                    saved_by = next(
                        (self._module_names[module] for module in running if module in self._module_names), ""
                    )
                    by_checkpoint = is_checkpoint_saving()
                    self._kept[key] = SavedStorage(storage.nbytes(), saved_by, self._producer(key), by_checkpoint)
                    self._current_bytes += self._kept[key].bytes
                self._holder_count[key] = self._holder_count.get(key, 0) + 1
            if counted:
                # A release can happen at any time and in any thread, so it is only queued for `_process_releases`.
                self._holders[weakref.ref(holder, self._dead_holders.append)] = list(counted)
        return holder

    def _producer(self, key: int) -> str | None:
        """The module that returned this storage. Its tensor must be alive, or another storage may reuse the key."""
        if key not in self._outputs:
            return None
        reference, name = self._outputs[key]
        return name if reference() is not None else None

    def _process_releases(self) -> None:
        """Remove what was released since the last tensor was saved."""
        if self._dead_holders:
            self._record_peak()
        while self._dead_holders:
            for key in self._holders.pop(self._dead_holders.popleft()):
                self._holder_count[key] -= 1
                if self._holder_count[key] == 0:
                    del self._holder_count[key]
                    self._current_bytes -= self._kept.pop(key).bytes

    def _record_peak(self) -> None:
        if self._current_bytes > self._peak_bytes:
            self._peak_bytes = self._current_bytes
            self._records = tuple(self._kept.values())


class _Holder:
    """Takes the place of a saved tensor in the graph. It dies with the graph's node, which shows the release.

    It returns what autograd would have kept: the same tensor where it has no history, because the data of a parameter
    may be freed and gathered again. Other tensors are detached. Otherwise, an operation that saves its own output would
    form a reference cycle, which only a backward pass would free: Python's garbage collector does not see it.
    """

    __slots__ = ("__weakref__", "storages", "tensor", "version")

    def __init__(self, tensor: Tensor, storages: list[UntypedStorage]) -> None:
        with torch._C.DisableTorchFunctionSubclass():  # a subclass may refuse unknown functions
            self.tensor = tensor if tensor.is_leaf else tensor.detach()
            self.version = tensor._version
        self.storages = storages  # a detached fake tensor does not share its storage

    def unwrap(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            version = self.tensor._version
        if version != self.version:  # with hooks, autograd does not check this
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"{self.tensor.dtype} tensor is at version {version}; expected version {self.version} instead"
            )
        return self.tensor


def _parameters(running: list[nn.Module]) -> Iterator[Tensor]:
    """The parameters that the running modules (the innermost first) may have gathered."""
    for module in (*(running[0].modules() if running else ()), *running[1:]):
        yield from (weight for weight in module._parameters.values() if weight is not None)
