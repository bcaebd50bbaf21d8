"""Finds the checkpoint to resume from, and refuses one that belongs to another model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from .errors import ConfigError

_STATE = "trainer_state.json"  # the Trainer writes it last
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_INDEX = "model.safetensors.index.json"


def last_resumable_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that an unfinished run can go on from; None where there is none.

    One that was written only in part is passed over, and so is that of the last step: the Trainer would train one more.
    """
    steps = {}
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        state = _state(path)
        if match and state is not None and state["global_step"] < state["max_steps"]:
            steps[int(match.group(1))] = path
    return steps[max(steps)] if steps else None


def _state(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's state in a checkpoint; None where it was not written to its end."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return state


def check_checkpoint(checkpoint: Path, model: nn.Module) -> None:
    """Make sure that a checkpoint's weights are this model's, by name and shape.

    Raises:
        ConfigError: the folder is no complete checkpoint, or one of another model.
    """
    if _state(checkpoint) is None:
        raise ConfigError(f"{checkpoint} is no complete checkpoint: it has no readable {_STATE}")
    saved = _saved_shapes(checkpoint)
    shapes = {_saved_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in saved.items():
        if name not in shapes:
            raise ConfigError(f"{checkpoint} is a checkpoint of another model: this one has no parameter {name}")
        if shapes[name] != shape:
            raise ConfigError(
                f"{checkpoint} is a checkpoint of another model: its {name} has the shape {shape}, here {shapes[name]}"
            )
    for names in _trained(model):
        if saved.keys().isdisjoint(names):
            raise ConfigError(f"{checkpoint} is a checkpoint of another model: it has no parameter {names[0]}")


def _trained(model: nn.Module) -> Iterable[list[str]]:
    """The names of each parameter that is trained. A shared one has several, and is saved under one of them."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(_saved_name(name))
    return names.values()


def _saved_name(name: str) -> str:
    """The name under which a parameter is saved: peft leaves the adapter's own name out."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def _saved_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    files = [checkpoint / name for name in _WEIGHTS if (checkpoint / name).is_file()]
    if (checkpoint / _INDEX).is_file():
        index = json.loads((checkpoint / _INDEX).read_text(encoding="utf-8"))
        files += [checkpoint / name for name in sorted(set(index["weight_map"].values()))]
    if not files:
        raise ConfigError(f"{checkpoint} holds no weights ({', '.join((*_WEIGHTS, _INDEX))})")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"the weights {file} cannot be read: {error}") from error
    return shapes
