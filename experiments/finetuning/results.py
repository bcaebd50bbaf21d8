"""The files that a run leaves in its folder, and how to read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from ..common.files import damaged, read_mapping

SETTINGS = "settings.json"  # written first: marks the folder as ours
RESULT = "run.json"  # written last: the run is finished

_PARTS = {"model": dict, "data": dict, "training": dict}
_NUMBER = (int, float)
_RESULT: dict[str, Any] = {
    **{"settings": dict, "data": dict, "patched": list, "loss": list, "eval": dict},
    **{"parameters": int, "dtype": str, "train_seconds": _NUMBER},
}


def read_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None if there are none.

    Raises:
        ConfigError: the file is damaged.
    """
    return read_mapping(folder / SETTINGS, _PARTS)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result of the finished run in a folder; None if it is not finished.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / RESULT
    result = read_mapping(path, _RESULT)
    if result is not None and (what := _what_is_wrong(result)):
        raise damaged(path, what)
    return result


def finished_result(folder: Path) -> dict[str, Any]:
    """The result of a run that has just been finished.

    Raises:
        ConfigError: it is missing or damaged.
    """
    result = read_result(folder)
    if result is None:
        raise ConfigError(f"{folder / RESULT} was removed in the meantime; run the same command again")
    return result


def divergence(run: Mapping[str, Any]) -> str | None:
    """How a run's losses show that it diverged, as a text; None if all are finite.

    Args:
        run: with ``loss`` (a list of mappings with ``step`` and ``loss``) and ``eval``.
    """
    steps = [entry["step"] for entry in run["loss"] if not math.isfinite(entry["loss"])]
    if steps:
        return f"the loss of {len(steps)} step{'s' * (len(steps) > 1)} is not finite, first at step {steps[0]}"
    scores = [name for name, value in run["eval"].items() if name.endswith("loss") and not math.isfinite(value)]
    return f"{scores[0]} is not finite" if scores else None


def _what_is_wrong(result: dict[str, Any]) -> str | None:
    for part, kind in _PARTS.items():
        if not isinstance(result["settings"].get(part), kind):
            return f"its settings have no {part!r}"
    for entry in result["loss"]:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), _NUMBER) for key in ("step", "loss")):
            return f"its losses hold {entry!r:.50}"
    for name, value in result["eval"].items():
        if not isinstance(value, _NUMBER):
            return f"its {name!r} is {value!r:.50}"
    return None
