"""Classes that modules have while they are patched.

The instance stays: optimizers, wrappers and state dicts know its parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from .kind import SETTINGS

Settings: TypeAlias = dict[str, Any]

_NOTE = "_hf_invact_note"


class PatchedClass(nn.Module):
    """Base of these classes. A subclass overrides methods, and is combined with the class in the unpatched model.

    Attributes:
        own_class: the subclass.
        original_class: the class in the unpatched model.
    """

    own_class: ClassVar[type[PatchedClass]]
    original_class: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled with the class in the unpatched model, since no module holds the one that is made from it."""
        reduced: Any = super().__reduce_ex__(4)
        return _new, (self.own_class, self.original_class), *reduced[2:]


def patch_class(module: nn.Module, own: Any, settings: Settings) -> None:
    """Give a module a class that is made of this one and its original one, whatever was installed."""
    original: Any = original_class(module)
    module.__class__ = _class(own, original)
    vars(module)[SETTINGS] = settings


def restore_class(*modules: nn.Module) -> None:
    """Undo `patch_class` where it was done."""
    for module in modules:
        if isinstance(module, PatchedClass):
            module.__class__ = module.original_class  # type: ignore[assignment]
            del vars(module)[SETTINGS]


def settings_of(module: nn.Module | None, own: type[PatchedClass]) -> Settings | None:
    """What `patch_class` was given; None where the module is not patched."""
    return vars(module)[SETTINGS] if isinstance(module, own) else None


def original_class(module: nn.Module) -> type[nn.Module]:
    """The class in the unpatched model."""
    return module.original_class if isinstance(module, PatchedClass) else type(module)


@contextmanager
def suspended(*modules: nn.Module) -> Iterator[None]:
    """Inside, the original classes; afterwards what was there before, whatever was installed."""
    before = [(module, type(module), vars(module)[SETTINGS]) for module in modules if isinstance(module, PatchedClass)]
    restore_class(*modules)
    try:
        yield
    finally:
        restore_class(*modules)
        for module, cls, settings in before:
            module.__class__ = cls
            vars(module)[SETTINGS] = settings


@contextmanager
def observed(module: nn.Module, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, pass the input and the result of each call of a module, as it is now, to a function."""
    cls: Any = type(module)
    module.__class__ = _observed_class(cls)
    vars(module)[_NOTE] = note
    try:
        yield
    finally:
        module.__class__ = cls
        del vars(module)[_NOTE]


class _Observed(nn.Module):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(x, *args, **kwargs)
        vars(self)[_NOTE](x, result)
        return result


@cache  # a new class for each call would be a cycle
def _observed_class(cls: Any) -> Any:
    return type(cls.__name__, (_Observed, cls), {})


@cache
def _class(own: Any, original: Any) -> Any:
    names = {
        "own_class": own,
        "original_class": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
    }
    return type(original.__name__, (own, original), names)


def _new(own: Any, original: Any) -> Any:
    patched = _class(own, original)
    return patched.__new__(patched)
