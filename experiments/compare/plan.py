"""What `scripts/compare.py` runs: read from a YAML file with experiments, or from the config of one run."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError
from ..common.limits import SEED_LIMIT
from ..common.yaml_files import check_keys, read_yaml
from ..finetuning.arguments import RunArguments, parse_run

_PLAN_KEYS = ("title", "output_dir", "seeds", "experiments")
_EXPERIMENT_KEYS = ("name", "title", "config", "fused")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Experiment:
    """A model to compare.

    Attributes:
        name: its name in folders.
        title: its name in the report.
        config: the run's config file.
        fused: values of the model's config that choose PyTorch's fused activation, for a second baseline; None if the
            activation is already fused.
    """

    name: str
    title: str
    config: Path
    fused: dict[str, Any] | None


@dataclass(frozen=True)
class PlannedRun:
    """One training run of an experiment."""

    experiment: Experiment
    variant: str
    seed: int
    folder: Path
    argv: tuple[str, ...]

    def arguments(self) -> RunArguments:
        """The run's arguments.

        Raises:
            ConfigError: an argument is invalid.
        """
        return parse_run(self.argv)


@dataclass(frozen=True)
class Plan:
    """Everything that one comparison runs, and where it is written."""

    title: str
    output_dir: Path
    seeds: tuple[int, ...]
    experiments: tuple[Experiment, ...]
    overrides: tuple[str, ...]

    def runs(self, experiment: Experiment) -> list[PlannedRun]:
        """Plain and inverted for each seed; the fused baseline for the first."""
        runs = []
        for seed in self.seeds:
            runs.append(self._run(experiment, "plain", seed, []))
            if experiment.fused is not None and seed == self.seeds[0]:
                base = parse_run([str(experiment.config), *self.overrides]).model.model_config
                assert isinstance(base, dict)
                fused = {**base, **experiment.fused}
                runs.append(self._run(experiment, "fused", seed, ["--model_config", json.dumps(fused)]))
            runs.append(self._run(experiment, "inverted", seed, ["--use_inverted_activations", "true"]))
        return runs

    def _run(self, experiment: Experiment, variant: str, seed: int, options: list[str]) -> PlannedRun:
        folder = self.output_dir / "runs" / f"{experiment.name}-{variant}-seed{seed}"
        own = ["--use_inverted_activations", "false", "--seed", str(seed), "--output_dir", str(folder), *options]
        return PlannedRun(experiment, variant, seed, folder, (str(experiment.config), *self.overrides, *own))


def read_plan(
    path: Path, output_dir: Path | None = None, seeds: Sequence[int] | None = None, overrides: Sequence[str] = ()
) -> Plan:
    """Read a plan. The config of a single run is a plan of this one model.

    Args:
        path: a YAML file with `experiments`, whose `config` entries are relative to it, or a run's config.
        output_dir, seeds: override those of the file.
        overrides: arguments to append to those of every run.

    Raises:
        ConfigError: a file or key cannot be used.
    """
    values = read_yaml(path)
    if not _is_plan(values):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-.") or "run"
        values = {
            "title": f"{path.stem}, with and without inverted activations",
            "output_dir": f"results/{path.stem}",
            "experiments": [{"name": name, "title": path.stem, "config": path.name}],
        }
    check_keys(values, _PLAN_KEYS, f"in the config {path}")
    chosen = seeds if seeds is not None else values.get("seeds")
    chosen = (0, 1) if chosen is None else chosen
    if not _are_seeds(chosen):
        raise ConfigError(
            f"seeds must be one or more different whole numbers from 0 to {SEED_LIMIT - 1}, got {chosen!r}"
        )
    entries = values.get("experiments")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"experiments in {path} must be a list of at least one experiment, got {entries!r}")
    experiments = tuple(_experiment(entry, path) for entry in entries)
    _check_names([experiment.name for experiment in experiments], path)
    folder = output_dir or Path(_text(values, "output_dir", f"in {path}", f"results/{path.stem}"))
    return Plan(_text(values, "title", f"in {path}", path.stem), folder, tuple(chosen), experiments, tuple(overrides))


def _is_plan(values: dict[str, Any]) -> bool:
    """Whether a config names experiments (perhaps with a misspelled key), and is not that of a single run."""
    own = set(_PLAN_KEYS) - {"output_dir"}
    return any(key in own or difflib.get_close_matches(str(key), ["experiments"], cutoff=0.8) for key in values)


def _are_seeds(chosen: Any) -> bool:
    if isinstance(chosen, str) or not isinstance(chosen, Sequence) or not chosen:
        return False
    are_numbers = all(
        isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < SEED_LIMIT for seed in chosen
    )
    return are_numbers and len(set(chosen)) == len(chosen)


def _check_names(names: Sequence[str], path: Path) -> None:
    """Refuse equal names. They name folders, and some file systems ignore upper and lower case."""
    for number, name in enumerate(names):
        for other in names[:number]:
            if name.lower() == other.lower():
                raise ConfigError(
                    f"the experiments in {path} must have different names (upper and lower case count as equal), "
                    f"got {list(names)}"
                )


def _experiment(entry: Any, path: Path) -> Experiment:
    if not isinstance(entry, dict) or not {"name", "config"} <= entry.keys():
        raise ConfigError(f"each of the experiments in {path} must be a mapping with name and config, got {entry!r}")
    where = f"in the experiment {entry['name']!r} of {path}"
    check_keys(entry, _EXPERIMENT_KEYS, where)
    name, fused = str(entry["name"]), entry.get("fused")
    if isinstance(entry["name"], bool | None) or not _NAME.fullmatch(name) or name.endswith("."):
        raise ConfigError(
            f"name {where} is used for folders, and must be up to 100 letters, digits, '.', '_' and '-'; the first "
            "must be a letter or digit, and the last must not be '.'"
        )
    if not isinstance(fused, dict | None):
        raise ConfigError(f"fused {where} must be a mapping, got {fused!r}")
    title, config = _text(entry, "title", where, name), _text(entry, "config", where, "")
    return Experiment(name, title, path.parent / config, fused)


def _text(values: dict[str, Any], key: str, where: str, default: str) -> str:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ConfigError(f"{key} {where} must be a non-empty text, got {value!r}")
    return str(value)
