"""Writing results so that an interruption at any moment leaves whole files, and never into somebody else's folder."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import ConfigError


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

    Raises:
        ConfigError: it cannot be made or written, or holds something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not (folder / marker).exists():
            raise ConfigError(
                f"the output folder {folder} is not empty and was not made by this script (it has no {marker}); "
                "choose another with --output_dir"
            )
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(
            f"the output folder {folder} cannot be written ({error.strerror}); choose another with --output_dir"
        ) from error
