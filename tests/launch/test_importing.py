"""A function is called when a module is imported, and only then."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hf_invact.launch.importing import after_import


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module to import."""
    (tmp_path / "to_be_imported.py").write_text("value = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "to_be_imported", raising=False)


@pytest.mark.parametrize("is_imported", [False, True], ids=["later", "already"])
def test_is_called_once_when_the_module_is_complete(is_imported: bool) -> None:
    found: list[int] = []

    def then(module: ModuleType) -> None:
        found.append(module.value)

    finders = list(sys.meta_path)
    if is_imported:
        importlib.import_module("to_be_imported")
    with after_import("to_be_imported", then):
        assert found == [1] * is_imported
        importlib.import_module("to_be_imported")
        importlib.import_module("to_be_imported")
    assert found == [1]
    assert sys.meta_path == finders


def test_is_not_called_after_the_block() -> None:
    def then(module: ModuleType) -> None:
        raise AssertionError("too late")

    finders = list(sys.meta_path)
    with after_import("to_be_imported", then):
        pass
    assert sys.meta_path == finders
    importlib.import_module("to_be_imported")
