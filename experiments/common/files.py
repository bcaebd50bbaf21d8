"""Writes results so that an interruption leaves no incomplete file, and never into somebody else's folder."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .disk import full_disk, is_full
from .errors import ConfigError
from .locks import LOCK

OWNED = ("settings.json", "run.json", "plan.json", "reproduction.json")
"""Files that mark a folder as made by a script. Without them, the rest would be taken for somebody else's."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all.

    Raises:
        ConfigError: the disk is full.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError) and is_full(error):
            raise full_disk(path) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON-compatible data, completely or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no such file.

    Raises:
        ConfigError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def read_mapping(path: Path, kinds: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a JSON file that holds a mapping; None where there is no such file.

    Args:
        kinds: the keys that it must have, and the type or types of their values.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    content = read_json(path)
    if content is None and not os.path.lexists(path):
        return None
    if not isinstance(content, dict):
        raise damaged(path, f"it holds {type(content).__name__} instead of a mapping")
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise damaged(path, f"its {key!r} is {content.get(key)!r:.50}")
    return content


def damaged(path: Path, what: str) -> ConfigError:
    """The error for a file of results that cannot be used, with what to do."""
    if path.name in OWNED:
        advice = f"remove the folder {path.parent} to start over, or choose another --output_dir"
    else:
        advice = "remove it to start over"
    return ConfigError(f"{path} is damaged ({what}); {advice}")


def claim_folder(folder: Path, marker: str) -> None:
    """Make sure that results may be written into a folder: it is new, empty, or holds the marker file.

    It is not created yet, so a run that is refused later leaves nothing behind.

    Raises:
        ConfigError: it cannot be created or written, or holds something else.
    """
    try:
        _refuse_impossible(folder)
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        names = {path.name for path in folder.iterdir()} - {LOCK} if existing == folder else set()
        # An interruption may have left the marker half written.
        if marker not in names and not all(name.startswith(f".{marker}.") for name in names):
            raise ConfigError(
                f"the output folder {folder} is not empty and was not made by this script (it has no {marker}); "
                "choose another with --output_dir"
            )
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}); choose another with --output_dir"
        ) from error


def _refuse_impossible(folder: Path) -> None:
    """Refuse paths through a broken link, and names that the file system does not allow."""
    if "\0" in str(folder):
        raise ConfigError(f"the output folder {str(folder)!r} is not a path; choose another with --output_dir")
    for path in (folder, *folder.parents):
        if path.is_symlink() and not path.exists():
            raise ConfigError(
                f"the output folder {folder} cannot be made: {path} is a link to {os.readlink(path)}, which does not "
                "exist; remove the link, or choose another with --output_dir"
            )
    with contextlib.suppress(FileNotFoundError):
        folder.lstat()
