"""Changes other modules temporarily, also those that are imported only later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def replace_attribute(changes: ExitStack, owner: object, name: str, value: Any) -> None:
    """Set an attribute of a class or a module until the stack is closed."""
    changes.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


@contextmanager
def after_import(name: str, then: Callable[[ModuleType], None]) -> Iterator[None]:
    """Call ``then(module)`` once the module is imported inside the block; at once if it already is."""
    if name in sys.modules:
        then(sys.modules[name])
        yield
        return
    finder = _Finder(name, then)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    """Finds one module as usual, and extends its loader to call a function afterwards."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_then(module: ModuleType) -> None:
            execute(module)
            self.then(module)

        vars(spec.loader)["exec_module"] = execute_and_then  # of this loader alone
        return spec
