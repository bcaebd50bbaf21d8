"""Reads configs, and refuses unknown keys."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, holds something else or a key twice.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the config {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the config {path} must hold a mapping of names to values, got {type(values).__name__}")
    return values


def check_keys(values: dict[str, Any], known: Sequence[str], where: str) -> None:
    """Raise ConfigError for the first unknown key. The message names the most similar known one."""
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(str(key), where, known))


def unknown_key(key: str, where: str, known: Sequence[str]) -> str:
    """The message for an unknown key."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "run the script with --help for all of them"
    return f"unknown option {key.partition('=')[0]!r} {where}; {hint}"


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping. YAML's own loader would silently take the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} occurs twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
