"""Analyses the runs of one model: paired differences of the final figures. Pure functions of their results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..subjects import ADAPTERS, CONTROL
from .intervals import interval, paired_difference

Run = Mapping[str, Any]

FINAL_STEPS = 10
FINAL_LOSS = "final training loss"


def analyse(runs: Sequence[Run]) -> dict[str, Any]:
    """Intervals over the seeds.

    Args:
        runs: with ``variant``, ``seed``, ``losses`` and ``eval``.

    Returns:
        ``metrics``: for each figure (the mean of the last `FINAL_STEPS` losses, and each score of the evaluation), the
        intervals of plain and each variant, and of the paired differences of each variant from plain. Variants are
        inverted, control and, if there, adapters. ``largest_difference``: the largest difference of a loss at any step,
        by variant. ``first_seed`` and ``methods``: for each variant, and for each other method, the final loss and its
        distance from the plain one of the first seed.
    """
    variants: dict[str, dict[int, Run]] = {}
    for run in runs:
        variants.setdefault(run["variant"], {})[run["seed"]] = run
    plain = variants["plain"]
    compared = {name: variants[name] for name in (ADAPTERS, "inverted", CONTROL) if name in variants}
    methods = {name: of_seed for name, of_seed in variants.items() if name not in ("plain", *compared)}
    names = [FINAL_LOSS, *next(iter(plain.values()))["eval"]]
    return {
        "final_steps": FINAL_STEPS,
        "metrics": {name: _metric(name, plain, compared) for name in names},
        "largest_difference": {
            name: max(largest_difference(of_seed[seed], plain[seed]) for seed in plain)
            for name, of_seed in compared.items()
        },
        "first_seed": [_of_first_seed(name, of_seed, plain) for name, of_seed in compared.items()],
        "methods": [_of_first_seed(name, of_seed, plain) for name, of_seed in methods.items()],
    }


def figure_of(run: Run, name: str) -> float:
    """One final figure of a run."""
    if name != FINAL_LOSS:
        return float(run["eval"][name])
    return statistics.fmean(run["losses"][-FINAL_STEPS:])


def largest_difference(run: Run, other: Run) -> float:
    """The largest difference of two runs' losses at the same step."""
    losses: list[float] = run["losses"]
    others: list[float] = other["losses"]
    return max(abs(loss - plain) for loss, plain in zip(losses, others, strict=True))


def _metric(name: str, plain: Mapping[int, Run], compared: Mapping[str, Mapping[int, Run]]) -> dict[str, Any]:
    values = {seed: figure_of(run, name) for seed, run in plain.items()}
    intervals = {"plain": interval(list(values.values())).record()}
    for variant, of_seed in compared.items():
        others = [figure_of(of_seed[seed], name) for seed in values]
        intervals[variant] = interval(others).record()
        intervals[f"{variant} - plain"] = paired_difference(others, list(values.values())).record()
    return intervals


def _of_first_seed(name: str, of_seed: Mapping[int, Run], plain: Mapping[int, Run]) -> dict[str, Any]:
    seed, run = next(iter(of_seed.items()))
    return {
        "method": name,
        "seed": seed,
        "final_loss": figure_of(run, FINAL_LOSS),
        "difference": figure_of(run, FINAL_LOSS) - figure_of(plain[seed], FINAL_LOSS),
        "largest_difference": largest_difference(run, plain[seed]),
    }
