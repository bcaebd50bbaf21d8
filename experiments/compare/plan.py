"""What `scripts/compare.py` runs: read from a YAML file that names the experiments, or from one run's own config."""

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
    """One model that is compared.

    Attributes:
        name: names its folders.
        title: names it in the report.
        config: the run's config file.
        fused: values of the model's config that spell its activation as PyTorch's fused function, for a second
            baseline; None where it is fused already.
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
            ConfigError: something in them is refused.
        """
        return parse_run(self.argv)


@dataclass(frozen=True)
class Plan:
    """All that one comparison runs, and where it is written."""

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
    """Read a plan. A config of a single run is compared by itself.

    Args:
        path: a YAML file with `experiments`, whose `config` entries are relative to it, or a run's config.
        output_dir, seeds: go before what the file says.
        overrides: arguments that are appended to every run's.

    Raises:
        ConfigError: a file or key that cannot be used.
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
            f"seeds must be at least one, different whole numbers from 0 to {SEED_LIMIT - 1}, got {chosen!r}"
        )
    entries = values.get("experiments")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"experiments in {path} must be a list of at least one, got {entries!r}")
    experiments = tuple(_experiment(entry, path) for entry in entries)
    _check_names([experiment.name for experiment in experiments], path)
    folder = output_dir or Path(_text(values, "output_dir", f"in {path}", f"results/{path.stem}"))
    return Plan(_text(values, "title", f"in {path}", path.stem), folder, tuple(chosen), experiments, tuple(overrides))


def _is_plan(values: dict[str, Any]) -> bool:
    """Whether a config names experiments, perhaps misspelt, or is that of a single run."""
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
    """Names name folders, and some systems do not tell upper from lower case."""
    for number, name in enumerate(names):
        for other in names[:number]:
            if name.lower() == other.lower():
                raise ConfigError(
                    f"the experiments in {path} must have different names, in more than upper and lower case, "
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
            f"name {where} names its folders, and must be up to 100 letters, digits, '.', '_' and '-', of which the "
            "first is a letter or digit and the last no '.'"
        )
    if not isinstance(fused, dict | None):
        raise ConfigError(f"fused {where} must be a mapping, got {fused!r}")
    title, config = _text(entry, "title", where, name), _text(entry, "config", where, "")
    return Experiment(name, title, path.parent / config, fused)


def _text(values: dict[str, Any], key: str, where: str, default: str) -> str:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise ConfigError(f"{key} {where} must be a text that is not empty, got {value!r}")
    return str(value)
