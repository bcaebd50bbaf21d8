"""Runs a module, and restores what the run has changed."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ...sites.errors import PatchingError
from .isolate import isolate, modules_in, tensors_in
from .randomness import own_random_numbers
from .writes import Writes, is_large

Step: TypeAlias = tuple[tuple[str, ...], Callable[[], object]]  # what it restores, in words to join, and how

_CONTAINERS = (dict, list, tuple, set, deque)
_EMPTIED_BY_CLEAR = frozenset({dict, OrderedDict, list, set, deque})


@contextmanager
def undisturbed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, training mode without hooks and checkpointing (see `isolate`). Afterwards everything is restored.

    Restored are, for the module and all modules in it: class, attributes, submodules, hooks and modes; the contents of
    lists, dictionaries, sets and deques in attributes, at any depth; values, shapes and storages of buffers and of
    tensors in attributes; generators in attributes. Parameters: which they are, and where their data is stored. Their
    values, and those of large buffers, are restored if operations of PyTorch have overwritten them. Random numbers: see
    `own_random_numbers`. Not restored are other objects that a forward pass changes (a config, a file, the variables
    of a closure) and gradients that it accumulates itself.

    Raises:
        PatchingError: something could not be restored. Everything else is.
    """
    modules = modules_in(module)
    steps, writes = list(_steps(modules)), Writes(modules)
    try:
        with torch.inference_mode(False), torch.enable_grad(), own_random_numbers(device, writes.note):
            for each in modules.values():
                each.training = True
            isolate(modules.values())
            yield
    finally:
        _take([*steps, *writes.steps()], type(module).__name__)


def _take(steps: list[Step], name: str) -> None:
    failures = []
    for what, put_back in steps:
        try:
            put_back()
        except Exception as error:  # the others must still be restored; it is reported below
            failures.append(f"{' '.join(what)} ({type(error).__name__}: {error})")
    if failures:
        raise PatchingError(
            f"running {name} on a few tokens, to measure it, has changed what cannot be restored: "
            f"{'; '.join(failures)}. Make the model again, and exclude its blocks with InvActConfig(exclude=[...])"
        )


def _steps(modules: Mapping[str, nn.Module]) -> Iterator[Step]:
    seen: set[int] = set()
    empty: list[Any] = []  # most containers of a module are: its hooks
    for module in modules.values():
        name, attributes = type(module).__name__, dict(vars(module))
        yield ("the class and attributes of", name), partial(_put_back_module, module, type(module), attributes)
        for attribute, value in attributes.items():
            if type(value) in _EMPTIED_BY_CLEAR and not value:
                empty.append(value)
            elif _is_restorable(value):
                yield from _steps_of((attribute, "of", name), value, seen)
    yield ("what was empty",), partial(_clear, empty)
    for name, weight in tensors_in(modules, "_parameters"):
        yield (
            ("the parameter", name),
            partial(_put_back_weight, weight, weight.data, weight.requires_grad, weight._backward_hooks),
        )
        if weight._backward_hooks:
            weight._backward_hooks = None


def _steps_of(what: tuple[str, ...], value: Any, seen: set[int]) -> Iterator[Step]:
    for part in _parts(value, seen):
        if isinstance(part, dict):
            yield ("the contents of", *what), partial(_refill, part, dict(part))
        elif isinstance(part, torch.Generator):
            yield ("the generator", *what), partial(part.set_state, part.get_state())
        elif not isinstance(part, Tensor):
            yield ("the contents of", *what), partial(_refill, part, list(part))
        elif what[0] == "_buffers" and is_large(part):
            yield ("a tensor in", *what), partial(_put_back_place, part, part.data)
        else:
            yield ("a tensor in", *what), _put_back_tensor(part)


def _parts(value: Any, seen: set[int]) -> Iterator[Any]:
    """What can be restored: mutable containers, tensors other than parameters, and generators."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if not isinstance(value, _CONTAINERS):
        if not isinstance(value, nn.Parameter):
            yield value
        return
    if not isinstance(value, tuple):
        yield value
    for each in value.values() if isinstance(value, dict) else value:
        if _is_restorable(each):
            yield from _parts(each, seen)


def _is_restorable(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        return True
    # What a model has most of comes first: whether something is a tensor, PyTorch finds out in Python.
    return not isinstance(value, (bool, int, str, nn.Module)) and isinstance(value, (Tensor, torch.Generator))


def _refill(container: Any, before: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, (list, deque)) else container.update)(before)


def _clear(containers: list[Any]) -> None:
    for container in containers:
        if container:
            container.clear()


def _put_back_module(module: nn.Module, cls: type[nn.Module], attributes: dict[str, Any]) -> None:
    if type(module) is not cls:
        module.__class__ = cls
    _refill(vars(module), attributes)


def _put_back_weight(weight: Tensor, data: Tensor, requires_grad: bool, hooks: Any) -> None:
    _put_back_place(weight, data)
    if weight.requires_grad != requires_grad:
        weight.requires_grad_(requires_grad)
    if hooks:
        weight._backward_hooks = hooks


def _put_back_tensor(tensor: Tensor) -> Callable[[], None]:
    data = tensor.data  # with a version counter of its own, unlike the result of `detach`
    value, size = data.clone(), data.untyped_storage().nbytes()

    def put_back() -> None:
        _put_back_place(tensor, data)
        if data.untyped_storage().nbytes() != size:
            data.untyped_storage().resize_(size)
        data.copy_(value)  # a graph that has saved the tensor must not see a change

    return put_back


def _put_back_place(tensor: Tensor, data: Tensor) -> None:
    """Restore where the elements are stored, and their shape and dtype."""
    same = tensor.shape == data.shape and tensor.stride() == data.stride() and tensor.dtype == data.dtype
    if not same or tensor.untyped_storage()._cdata != data.untyped_storage()._cdata:
        tensor.data = data
