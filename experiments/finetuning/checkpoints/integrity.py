"""Tells complete checkpoints from those that a kill, a full disk or an interrupted copy has damaged."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

STATE = "trainer_state.json"  # the Trainer writes it last
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
INDEX = "model.safetensors.index.json"

# What a run needs to continue as if it had not stopped. With `save_only_model`, none of it is saved.
_TO_CONTINUE = ("optimizer*", "scheduler.pt", "rng_state*")
_OF_DEEPSPEED = ("global_step*", "rng_state*")


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's state in a checkpoint; None if it was not completely written."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    steps = [state.get(name) for name in ("global_step", "max_steps")] if isinstance(state, dict) else [None]
    return state if all(type(step) is int for step in steps) else None


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, as a text; None if they are intact.

    Every file is read once. Whether the weights belong to a model is not checked.
    """
    if read_state(checkpoint) is None:
        return f"it has no readable {STATE}"
    for path in sorted(checkpoint.iterdir()):
        try:
            for pattern, check in _CHECKS:
                if path.match(pattern):
                    check(path)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile, zlib.error) as error:
            return f"{path.name} cannot be read ({error})"
    files = weight_files(checkpoint)
    if not files:
        return f"it holds no weights ({', '.join((*WEIGHTS, INDEX))})"
    absent = [path.name for path in files if not path.exists()]
    missing = absent or _missing(checkpoint)
    return f"{missing[0]} is missing" if missing else None


def weight_files(checkpoint: Path) -> list[Path]:
    """The files that should hold a checkpoint's weights, whether they exist or not.

    Raises:
        ValueError: the index that lists them is damaged.
    """
    files = [checkpoint / name for name in WEIGHTS if (checkpoint / name).exists()]
    if (checkpoint / INDEX).exists():
        names = _read_mapping(checkpoint / INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{checkpoint / INDEX} does not name the files of the weights")
        files += [checkpoint / name for name in sorted(set(names.values()))]
    return files


def _missing(checkpoint: Path) -> list[str]:
    needed = _OF_DEEPSPEED if any(checkpoint.glob(_OF_DEEPSPEED[0])) else _TO_CONTINUE
    missing = [glob.rstrip("*") for glob in needed if not any(checkpoint.glob(glob))]
    return missing if len(missing) < len(needed) else []


def _read_mapping(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__} instead of a mapping")
    return content


def _check_json(path: Path) -> None:
    _read_mapping(path)
    if path.name == INDEX:
        weight_files(path.parent)


def _check_archive(path: Path) -> None:
    """Check a file of `torch.save`, which has a checksum of each part."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its part {damaged} is damaged")


def _check_weights(path: Path) -> None:
    with safe_open(path, framework="pt"):
        pass


_CHECKS: tuple[tuple[str, Callable[[Path], None]], ...] = (
    ("*.json", _check_json),
    ("*.safetensors", _check_weights),
    ("*.pt", _check_archive),
    ("*.pth", _check_archive),
    ("training_args.bin", _check_archive),
    ("optimizer.bin", _check_archive),
)
