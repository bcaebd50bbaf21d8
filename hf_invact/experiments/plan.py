"""What `scripts/compare.py` runs: read from a YAML file that names the experiments, or from one run's own config."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arguments import RunArguments, check_keys, parse_run, read_yaml
from .errors import ConfigError

_PLAN_KEYS = ("title", "output_dir", "seeds", "experiments")
_EXPERIMENT_KEYS = ("name", "title", "config", "fused")


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
    if "experiments" not in values:
        values = {
            "title": f"{path.stem}, with and without inverted activations",
            "output_dir": f"results/{path.stem}",
            "experiments": [{"name": path.stem, "title": path.stem, "config": path.name}],
        }
    check_keys(values, _PLAN_KEYS, f"in the config {path}")
    chosen = seeds or values.get("seeds") or (0, 1)
    if not isinstance(chosen, Sequence) or not all(map(_is_seed, chosen)) or len(set(chosen)) != len(chosen):
        raise ConfigError(f"seeds must be different whole numbers from 0 on, got {chosen!r}")
    if not isinstance(values["experiments"], list) or not values["experiments"]:
        raise ConfigError(f"experiments in {path} must be a list of at least one, got {values['experiments']!r}")
    experiments = tuple(_experiment(entry, path) for entry in values["experiments"])
    names = [experiment.name for experiment in experiments]
    if len(set(names)) != len(names):
        raise ConfigError(f"the experiments in {path} must have different names, got {names}")
    folder = output_dir or Path(values.get("output_dir", f"results/{path.stem}"))
    return Plan(str(values.get("title", path.stem)), folder, tuple(chosen), experiments, tuple(overrides))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32


def _experiment(entry: Any, path: Path) -> Experiment:
    if not isinstance(entry, dict) or not {"name", "config"} <= entry.keys():
        raise ConfigError(f"each of the experiments in {path} must be a mapping with name and config, got {entry!r}")
    name, fused = str(entry["name"]), entry.get("fused")
    check_keys(entry, _EXPERIMENT_KEYS, f"in the experiment {name!r} of {path}")
    if not isinstance(fused, dict | None):
        raise ConfigError(f"fused in the experiment {name!r} of {path} must be a mapping, got {fused!r}")
    return Experiment(name, str(entry.get("title", name)), path.parent / str(entry["config"]), fused)
