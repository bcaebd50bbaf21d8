"""The results file. It is complete after each measurement, and an interrupted run continues it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from ..common.files import read_json, write_json

FORMAT = 1
SECTIONS = ("operators", "steps")
MUST_MATCH = ("format", "device", "environment", "settings")  # in a file that a run continues


class Results:
    """The entries measured so far, and the file that holds them.

    Args:
        path: the file. Its folder is created.
        header: "format", "command", "device", "environment" and "settings", as JSON-compatible data.
        orders: for each section, the key to sort its entries by.

    Raises:
        ConfigError: the file is damaged, holds something else, or was measured on another device.
    """

    def __init__(self, path: Path, header: dict[str, Any], orders: dict[str, Callable[[Any], Any]]) -> None:
        self.path, self._orders = path, orders
        before = read_json(path)
        if before is not None:
            _check_owner(path, before, header)
        if before is not None and not before["complete"] and all(before[key] == header[key] for key in MUST_MATCH):
            self.content = before
        else:
            self.content = {**header, "complete": False, **{section: [] for section in SECTIONS}}
        self.resumed = {section: len(self.content[section]) for section in SECTIONS}

    def __contains__(self, key: dict[str, Any]) -> bool:
        """Whether there is an entry with these values."""
        entries = (entry for section in SECTIONS for entry in self.content[section])
        return any(key.items() <= entry.items() for entry in entries)

    def add(self, section: str, entry: dict[str, Any]) -> None:
        """Add an entry in its place, and write the file."""
        self.content[section].append(entry)
        self.content[section].sort(key=self._orders[section])
        self._write()

    def finish(self, keys: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Note whether all of these were measured. Returns those that were not."""
        missing = [key for key in keys if key not in self]
        self.content["complete"] = not missing
        self._write()
        return missing

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results file.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds something else.
    """
    content: dict[str, Any] | None = read_json(path)
    if content is None:
        raise ConfigError(f"{path} does not exist")
    _check_format(path, content)
    return content


def _check_format(path: Path, content: Any) -> None:
    kinds = {"device": dict, "environment": dict, "settings": dict, "complete": bool, **dict.fromkeys(SECTIONS, list)}
    is_ours = isinstance(content, dict) and content.get("format") == FORMAT
    if not is_ours or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise ConfigError(
            f"{path} does not hold results of this benchmark (format {FORMAT}); choose another with --output"
        )


def _check_owner(path: Path, before: Any, header: dict[str, Any]) -> None:
    _check_format(path, before)
    measured, here = before["device"]["name"], header["device"]["name"]
    if before["device"]["slug"] != header["device"]["slug"]:
        raise ConfigError(f"{path} was measured on {measured}, this is {here}; choose another file with --output")
    if header["settings"]["quick"] and not before["settings"]["quick"]:
        raise ConfigError(f"{path} holds a full measurement, which --quick would replace; choose another with --output")
