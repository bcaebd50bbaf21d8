"""The figures of the fine-tuning runs: losses with the band of the seeds, and how far they are from the plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...memory.plots import GREY, finish, new_figure
from ..plots import VARIANT_COLOURS
from .subjects import CONTROL

Model = Mapping[str, Any]

COLOURS = {**VARIANT_COLOURS, CONTROL: GREY}
# Okabe-Ito, and black.
METHOD_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#999999", "#000000", "#B8A200")
LEAST = 1e-8  # a log scale has no place for zeros: they are drawn here, on the axis


def subject_figure(model: Model) -> Figure:
    """Losses of all seeds, plain and inverted, and below them the distances from the plain run of the same seed.

    Lines are means, bands go from the smallest to the largest of the seeds.
    """
    figure = new_figure(height=5.6)
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    looks: dict[str, dict[str, Any]] = {
        "plain": {"linewidth": 3.4, "alpha": 0.75},
        "inverted": {"linewidth": 1.6, "linestyle": (0, (4, 3))},
    }
    for variant, look in looks.items():
        _draw_band(losses, _steps(model), _losses(model, variant), variant, variant, look)
    plain = _losses(model, "plain")
    for variant in (CONTROL, "inverted"):
        _draw_band(
            distances,
            _steps(model),
            _distances(_losses(model, variant), plain),
            variant,
            _LABELS[variant],
            {"linewidth": 1.6},
        )
    _finish_distances(distances)
    losses.set_ylabel("training loss")
    figure.suptitle(f"{model['title']}: mean and range of {len(model['seeds'])} seeds", fontsize=11)
    for axes in (losses, distances):
        finish(axes, grid="both")
    return figure


_LABELS = {
    "inverted": "inverted, from the plain run of the same seed",
    CONTROL: "control: one weight moved by 1 unit in the last place",
}


def methods_figure(model: Model) -> Figure:
    """How far each method's losses are from the plain run's of the same seed, with the control as the yardstick."""
    figure = new_figure(height=4.2)
    axes = figure.subplots()
    seed = model["analysis"]["methods"][0]["seed"]
    by_variant = {run["variant"]: run["losses"] for run in model["runs"] if run["seed"] == seed}
    plain = np.array(by_variant.pop("plain"))
    colours = iter(METHOD_COLOURS)
    for variant, losses in by_variant.items():
        look: dict[str, Any] = {"linewidth": 1.5}
        colour = COLOURS.get(variant) or next(colours)
        if variant == CONTROL:
            look |= {"linestyle": ":", "linewidth": 2.4}
        distance = np.abs(np.array(losses) - plain)
        axes.plot(_steps(model), np.maximum(distance, LEAST), color=colour, label=variant, **look)
    _finish_distances(axes)
    figure.suptitle(f"{model['title']}, seed {seed}: distance of the loss from the plain run's", fontsize=11)
    finish(axes, grid="both")
    return figure


def _draw_band(
    axes: Axes, steps: Sequence[int], values: np.ndarray, variant: str, label: str, look: Mapping[str, Any]
) -> None:
    colour = COLOURS[variant]
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.16, linewidth=0)
    axes.plot(steps, values.mean(axis=0), color=colour, label=label, **look)


def _distances(losses: np.ndarray, plain: np.ndarray) -> np.ndarray:
    distances: np.ndarray = np.maximum(np.abs(losses - plain), LEAST)
    return distances


def _finish_distances(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST)
    axes.set_ylabel("|loss difference|")
    axes.set_xlabel("training step (on the axis: exactly equal)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _steps(model: Model) -> list[int]:
    steps: list[int] = model["runs"][0]["steps"]
    return steps


def _losses(model: Model, variant: str) -> np.ndarray:
    """Shape (seeds, steps)."""
    return np.array([run["losses"] for run in model["runs"] if run["variant"] == variant])
