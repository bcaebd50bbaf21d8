"""Writing results so that an interruption at any moment leaves whole files, and never into somebody else's folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .locks import LOCK


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write plain data as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(value, indent=2, default=str) + "\n").encode())


def read_json(path: Path) -> Any:
    """The content of a JSON file; None where there is no such file.

    Raises:
        ConfigError: the file is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); remove it to start over") from error


def claim_folder(folder: Path, marker: str) -> None:
    """Make sure that results may be written into a folder: it is new, empty, or holds the marker file.

    It is not made yet, so that a run that is refused later leaves nothing behind.

    Raises:
        ConfigError: it cannot be made or written, or holds something else.
    """
    try:
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
