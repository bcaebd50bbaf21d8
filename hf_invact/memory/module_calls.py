"""Watches calls of modules without leaving a trace in copies, pickles and compiled code of the model."""

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

# Where `nn.Module.compile` puts the compiled call. Copies and pickles leave the attribute out, and TorchDynamo traces a
# module's forward without it. Hooks or a bound forward would be copied and traced.
_ATTRIBUTE = "_compiled_call_impl"
_CALL = nn.Module._wrapped_call_impl.__code__
_lock = threading.RLock()


def watch(module: nn.Module, watcher: Watcher) -> Callable[[], None]:
    """Route each call of a module through the watcher, which gets the call and returns its result.

    Returns:
        A function that ends the watching. It may be called more than once.
    """
    for function in (_WatchedCall.__call__, getattr(watcher, "func", watcher)):
        _skip_frame(function)
    with _lock:
        watched = vars(module).get(_ATTRIBUTE)
        if not isinstance(watched, _WatchedCall):
            watched = _WatchedCall(module)
        watched.watchers.append(watcher)
    return partial(watched.remove, watcher)


def watchers(module: nn.Module) -> tuple[Watcher, ...]:
    """The watchers of a module, in the order in which they were added."""
    watched = vars(module).get(_ATTRIBUTE)
    return tuple(watched.watchers) if isinstance(watched, _WatchedCall) else ()


def watch_outputs(module: nn.Module, note: Callable[[Any], None]) -> Callable[[], None]:
    """As `watch`, for a function that only needs the output of each call, and that is `not_compiled`."""
    return watch(module, partial(_call_and_note, note))


def _call_and_note(note: Callable[[Any], None], call: Call) -> Any:
    output = call()
    note(output)
    return output


def not_compiled(function: Function) -> Function:
    """The function, excluded from compilation by TorchDynamo."""
    # Loading TorchDynamo takes a second; as long as it is not loaded, nothing is compiled.
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def _skip_frame(function: Callable[..., Any]) -> None:
    """Have TorchDynamo compile the calls inside a function, but not the function itself."""
    if dynamo := sys.modules.get("torch._dynamo"):
        function = function if hasattr(function, "__code__") else type(function).__call__
        dynamo.decorators.skip_code(function.__code__)  # (`disable(recursive=False)` would break tracing)


def running_modules() -> Iterator[nn.Module]:
    """The modules that are running in this thread, the innermost first."""
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]  # None ends the loop
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]


def is_checkpoint_saving() -> bool:
    """Whether the tensor being saved is saved by a checkpoint, not by an operation of the model."""
    frame = sys._getframe(1)
    while (name := frame.f_globals.get("__name__", "")).startswith((__package__, "torch._dynamo", "torch.autograd")):
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return bool(name == torch.utils.checkpoint.__name__)


class _WatchedCall:
    """Replaces the compiled call of one module while it has watchers."""

    def __init__(self, module: nn.Module) -> None:
        self.watchers: list[Watcher] = []
        self._module, self._had = module, {name: value for name, value in vars(module).items() if name == _ATTRIBUTE}
        vars(module)[_ATTRIBUTE] = self  # setattr would pass through the wrapper of `torch.compile`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():  # traced as part of a module with hooks
            return self._module._call_impl(*args, **kwargs)
        caller = sys._getframe(1)
        # Replicas of nn.DataParallel share this object, but each has to run itself.
        module = caller.f_locals["self"] if caller.f_code is _CALL else self._module
        call: Call = partial(self._had.get(_ATTRIBUTE) or module._call_impl, *args, **kwargs)
        for watcher in tuple(self.watchers):
            call = partial(watcher, call)
        return call()

    def remove(self, watcher: Watcher) -> None:
        with _lock:
            if watcher in self.watchers:
                self.watchers.remove(watcher)
            if not self.watchers and vars(self._module).get(_ATTRIBUTE) is self:
                del vars(self._module)[_ATTRIBUTE]
                vars(self._module).update(self._had)

    def __deepcopy__(self, memo: Any) -> None:
        """Classes that copy modules in their own way get None, as of a module that is not compiled."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()
