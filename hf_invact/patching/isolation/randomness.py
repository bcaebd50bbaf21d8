"""Separate random numbers for a probe, so that the global generators are neither advanced nor reset."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

See: TypeAlias = Callable[[Any, Sequence[Any], Mapping[str, Any]], None]

SEED = 0


@contextmanager
def own_random_numbers(device: torch.device, see: See | None = None) -> Iterator[None]:
    """Inside, PyTorch draws random numbers for this thread from separate generators, with the same seed each time.

    The state of PyTorch's global generator is thus never touched, and another thread may go on drawing from it. What
    gets past that (kernels that PyTorch does not know as random, a `torch.manual_seed` inside, Python's and NumPy's
    random numbers) is put back where it has changed; only this can rewind what another thread draws at the same time.
    PyTorch's generator of the CPU is put back so where no other thread runs, or an operation had to draw from it.

    Args:
        see: is called with each operation and its arguments before it runs.
    """
    states = [_State(*accessors) for accessors in _accessors(device)]
    cpu = _State(torch.default_generator.get_state, torch.default_generator.set_state)
    numbers = _OwnGenerators(see)
    try:
        with numbers:
            yield
    finally:
        if numbers.drew_globally or threading.active_count() == 1:
            states.append(cpu)
        for state in states:
            state.put_back()


class _State:
    """The state of a source of random numbers."""

    def __init__(self, get: Callable[[], Any], put: Callable[[Any], object]) -> None:
        with _disable_current_modes():  # states are real tensors also in a fake mode
            self._get, self._put, self._before = get, put, get()

    def put_back(self) -> None:
        with _disable_current_modes():
            if not _equal(self._get(), self._before):
                self._put(self._before)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple):  # NumPy's holds an array
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other) if not hasattr(one, "tobytes") else one.tobytes() == other.tobytes()


def _accessors(device: torch.device) -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    yield random.getstate, random.setstate
    if numpy := sys.modules.get("numpy"):
        yield numpy.random.get_state, numpy.random.set_state
    if device.type in ("cpu", "meta"):
        return
    accelerator = torch.get_device_module(device)
    if accelerator.is_available():  # otherwise its tensors are fake
        yield lambda: accelerator.get_rng_state(device), lambda state: accelerator.set_rng_state(state, device)


class _OwnGenerators(TorchDispatchMode):
    """Passes a generator to every operation that would use the global one.

    Below autograd, so that what is saved for the backward pass does not change. It holds for the current thread alone.

    Attributes:
        drew_globally: whether an operation takes no generator and has drawn from the global one.
    """

    supports_higher_order_operators = True

    def __init__(self, see: See | None) -> None:
        super().__init__()
        self._see = see
        self._generators: dict[torch.device, torch.Generator] = {}
        self.drew_globally = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._see is not None:
            self._see(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        if kwargs.get("generator") is not None or any(isinstance(each, torch.Generator) for each in args):
            return func(*args, **kwargs)
        generator = self._generator(
            next((each.device for each in args if isinstance(each, Tensor)), kwargs.get("device"))
        )
        if func is torch.ops.aten.native_dropout.default:
            return _native_dropout(generator, *args)
        if (seeded := _with_generator(func)) is None:
            self.drew_globally = True
            return func(*args, **kwargs)
        return seeded(*args, **{**kwargs, "generator": generator})

    def _generator(self, device: torch.device | None) -> torch.Generator:
        device = torch.device(device or "cpu")
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(SEED)
        return self._generators[device]


def _with_generator(func: Any) -> Any:
    """The overload of an operation that takes a generator; None if there is none."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func
    name = func._overloadname
    return getattr(func.overloadpacket, "generator" if name == "default" else f"{name}_generator", None)


def _native_dropout(generator: torch.Generator, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    """The same as the kernel: the result, and the mask that is saved for backward."""
    if train is False:
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    mask = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return x * mask * (1 / (1 - p) if p < 1 else 0.0), mask
