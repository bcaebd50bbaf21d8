"""Modules that run, seen from outside: who copies, pickles or compiles the model meanwhile does not see that it is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import nn

Call = Callable[[], Any]
Watcher = Callable[[Call], Any]
Function = TypeVar("Function", bound=Callable[..., Any])

# Where `nn.Module.compile` puts the compiled call. Copies and pickles leave it out, and TorchDynamo traces a module's
# forward without it. Hooks and a bound forward would be in both.
_SLOT = "_compiled_call_impl"
_CALL = nn.Module._wrapped_call_impl.__code__
_lock = threading.RLock()


def watch(module: nn.Module, watcher: Watcher) -> Callable[[], None]:
    """Have each call of a module made by the watcher, which gets the call and returns its result.

    Returns:
        What ends it. (It may be called more than once.)
    """
    for function in (_WatchedCall.__call__, getattr(watcher, "func", watcher)):
        _skip_frame(function)
    with _lock:
        watched = vars(module).get(_SLOT)
        if not isinstance(watched, _WatchedCall):
            watched = _WatchedCall(module)
        watched.watchers.append(watcher)
    return partial(watched.remove, watcher)


def watchers(module: nn.Module) -> tuple[Watcher, ...]:
    """Those who watch the module."""
    watched = vars(module).get(_SLOT)
    return tuple(watched.watchers) if isinstance(watched, _WatchedCall) else ()


def watch_outputs(module: nn.Module, note: Callable[[Any], None]) -> Callable[[], None]:
    """As `watch`, for what only wants to see what each call returns."""
    return watch(module, partial(_then, unseen(note)))


def _then(note: Callable[[Any], None], call: Call) -> Any:
    output = call()
    note(output)
    return output


def unseen(function: Function) -> Function:
    """The function, which TorchDynamo does not compile where a model calls it outside of a graph."""
    # Where it is not loaded, nothing is compiled; to load it takes a second.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _skip_frame(function: Callable[..., Any]) -> None:
    """Have TorchDynamo compile what the function calls, but not the function itself."""
    if dynamo := sys.modules.get("torch._dynamo"):
        function = function if hasattr(function, "__code__") else type(function).__call__
        dynamo.decorators.skip_code(function.__code__)  # (`disable(recursive=False)` would be in the way of tracing)


def running_modules() -> Iterator[nn.Module]:
    """The modules that run in this thread just now, the innermost first."""
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]


def is_checkpoint_saving() -> bool:
    """Whether it is a checkpoint that saves a tensor just now, and no operation of the model."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")).startswith((__package__, "torch._dynamo", "torch.autograd")):
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return bool(name == torch.utils.checkpoint.__name__)


class _WatchedCall:
    """Stands in the slot of one module while anyone watches it."""

    def __init__(self, module: nn.Module) -> None:
        self.watchers: list[Watcher] = []
        self._module, self._had = module, {name: value for name, value in vars(module).items() if name == _SLOT}
        vars(module)[_SLOT] = self  # setattr would reach through the wrapper that `torch.compile` makes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # traced, as part of a module that has hooks
            return self._module._call_impl(*args, **kwargs)
        caller = sys._getframe(1)
        # Replicas of nn.DataParallel share what is in the slot: each of them runs itself.
        module = caller.f_locals["self"] if caller.f_code is _CALL else self._module
        call: Call = partial(self._had.get(_SLOT) or module._call_impl, *args, **kwargs)
        for watcher in tuple(self.watchers):
            call = partial(watcher, call)
        return call()

    def remove(self, watcher: Watcher) -> None:
        with _lock:
            if watcher in self.watchers:
                self.watchers.remove(watcher)
            if not self.watchers and vars(self._module).get(_SLOT) is self:
                del vars(self._module)[_SLOT]
                vars(self._module).update(self._had)

    def __deepcopy__(self, memo: Any) -> None:
        """A class that copies its modules in its own way gets what stands there for a module that is not compiled."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()
