"""Finds the checkpoint to resume from, and refuses one that belongs to another model."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from safetensors import safe_open
from torch import nn

from ...common.errors import ConfigError
from .integrity import WEIGHTS, damage, read_state, weight_files

logger = logging.getLogger(__name__)


def last_resumable_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, perhaps that of its last step; None if the run has to start over.

    A checkpoint that is only partly written is skipped: the run was killed while writing it. One with damaged files is
    skipped with a warning.

    Raises:
        ConfigError: all checkpoints that were completely written are damaged.
    """
    complete = [path for path in checkpoints(folder) if read_state(path) is not None]
    damaged: list[str] = []
    for path in reversed(complete):
        if (what := damage(path)) is None:
            for skipped in damaged:
                logger.warning("skipping a damaged checkpoint: %s", skipped)
            return path
        damaged.append(f"{path}: {what}")
    if damaged:
        raise ConfigError(
            f"every checkpoint in {folder} is damaged (the newest one: {damaged[0]}); remove them to start over, or "
            "choose another --output_dir"
        )
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders in a run's folder, complete or not, from the first step to the last."""
    steps = {}
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and path.is_dir():
            steps[int(match.group(1))] = path
    return [steps[step] for step in sorted(steps)]


def holds_weights(folder: Path) -> bool:
    """Whether a run's folder holds anything that was trained: checkpoints, complete or not, or final weights."""
    return bool(checkpoints(folder)) or any((folder / name).exists() for name in WEIGHTS) or any(folder.glob("model-*"))


def check_complete(checkpoint: Path) -> None:
    """Make sure that a folder is a complete checkpoint.

    Raises:
        ConfigError: it is something else, or damaged.
    """
    if (what := damage(checkpoint)) is not None:
        raise ConfigError(f"{checkpoint} is not a complete checkpoint: {what}")


def check_checkpoint(checkpoint: Path, model: nn.Module) -> None:
    """Make sure that the weights in a complete checkpoint have the names and shapes of this model's.

    Raises:
        ConfigError: they belong to another model.
    """
    saved = _saved_shapes(checkpoint)
    shapes = {_saved_name(name): tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in saved.items():
        if name not in shapes:
            raise ConfigError(f"{checkpoint} is a checkpoint of another model: this one has no parameter {name}")
        if shapes[name] != shape:
            raise ConfigError(
                f"{checkpoint} is a checkpoint of another model: its {name} has the shape {shape}, but here it is "
                f"{shapes[name]}"
            )
    for names in _trained(model):
        if saved.keys().isdisjoint(names):
            raise ConfigError(f"{checkpoint} is a checkpoint of another model: it has no parameter {names[0]}")


def _trained(model: nn.Module) -> Iterable[list[str]]:
    """The names of each trained parameter. A shared one has several names, and is saved under one of them."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(_saved_name(name))
    return names.values()


def _saved_name(name: str) -> str:
    """The name under which a parameter is saved: PEFT leaves out the adapter's name."""
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def _saved_shapes(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes
