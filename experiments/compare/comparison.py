"""Compares finished runs: pure functions from their results to the content of comparison.json."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from ..finetuning.results import divergence

Run = Mapping[str, Any]
Losses = Mapping[int, float]  # by step


def compare_model(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How far the inverted runs' losses are from the plain ones, and the spread between seeds.

    Args:
        runs: of one model, with ``variant``, ``seed`` and ``loss`` (a list of mappings with ``step`` and ``loss``).

    Returns:
        Differences are absolute, between losses of the same seed and step, and the largest over the seeds; NaN if a
        loss is not finite. The spread at a step is the largest difference between two seeds of the plain run; None if
        there is one seed. None instead of the mapping if a plain run and its inverted one share no logged step.
    """
    plain = {run["seed"]: _losses(run) for run in runs if run["variant"] == "plain"}
    inverted = {run["seed"]: _losses(run) for run in runs if run["variant"] == "inverted"}
    difference = _largest_by_step([(plain[seed], inverted[seed]) for seed in plain if seed in inverted])
    spread = _largest_by_step(list(combinations(plain.values(), 2)))
    if not difference:
        return None
    first, last = min(difference), max(difference)
    shared = sorted(set(difference) & set(spread))
    return {
        "first_loss_difference": difference[first],
        "first_loss_identical": difference[first] == 0.0,
        "largest_difference": _largest(difference.values()),
        "final_difference": difference[last],
        "steps": len(difference),
        "steps_within_spread": sum(difference[step] < spread[step] for step in shared) if spread else None,
        "smallest_spread": min(spread.values(), key=_nan_last) if spread else None,
        "largest_spread": _largest(spread.values()) if spread else None,
        "final_spread": spread.get(last),
    }


def diverged(model: Mapping[str, Any]) -> list[str]:
    """The runs of a compared model that diverged, and how."""
    found = [(run, divergence(run)) for run in model["runs"]]
    return [f"{model['title']}, {run['variant']}, seed {run['seed']}, diverged: {how}" for run, how in found if how]


def _losses(run: Run) -> Losses:
    return {entry["step"]: entry["loss"] for entry in run["loss"]}


def _largest_by_step(pairs: Sequence[tuple[Losses, Losses]]) -> dict[int, float]:
    largest: dict[int, float] = {}
    for one, other in pairs:
        for step in one.keys() & other.keys():
            largest[step] = _largest([largest.get(step, 0.0), abs(one[step] - other[step])])
    return largest


def _largest(values: Iterable[float]) -> float:
    return max(values, key=_nan_last)


def _nan_last(value: float) -> tuple[bool, float]:
    """Sorts NaN above all numbers, which `max` alone would not do."""
    return math.isnan(value), value
