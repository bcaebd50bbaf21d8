"""The figures of the fine-tuning runs: losses with the range of the seeds, and their distances from the plain ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_invact.display.figures import GREY, finish, new_figure

from ...common.colours import VARIANT_COLOURS
from ...methods.catalogue import METHODS
from ..subjects import ADAPTERS, CONTROL

Model = Mapping[str, Any]

COLOURS = {**VARIANT_COLOURS, ADAPTERS: VARIANT_COLOURS["fused"], CONTROL: GREY}
# Okabe-Ito without the colours of inverted and control, then others.
METHOD_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#B8A200", "#000000", "#8C564B")
LEAST = 1e-8  # a log scale cannot show zeros: they are drawn here, on the axis


def subject_figure(model: Model) -> Figure:
    """Losses of all seeds, plain and inverted, and below them the distances from the plain run of the same seed.

    Lines are means, bands span the seeds from the smallest value to the largest.
    """
    figure = new_figure(height=5.6)
    losses, distances = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    styles: dict[str, dict[str, Any]] = {
        "plain": {"linewidth": 3.4, "alpha": 0.75},
        "inverted": {"linewidth": 1.6, "linestyle": (0, (4, 3))},
    }
    for variant, style in styles.items():
        _draw_band(losses, _steps(model), _losses(model, variant), variant, variant, style)
    plain = _losses(model, "plain")
    for variant in [variant for variant in _LABELS if any(run["variant"] == variant for run in model["runs"])]:
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
    if any(run["variant"] == ADAPTERS for run in model["runs"]):  # the labels are too long for one line
        distances.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=1, frameon=False, fontsize=9)
    return figure


_LABELS = {
    CONTROL: "control: one weight moved by 1 unit in the last place",
    "inverted": "inverted, from the plain run of the same seed",
    ADAPTERS: "the inputs of adapters alone",
}


def methods_figure(model: Model) -> Figure:
    """How far each method's losses are from the plain run's of the same seed, with the control for comparison."""
    figure = new_figure(height=4.8)
    axes = figure.subplots()
    seed = model["analysis"]["methods"][0]["seed"]
    by_variant = {run["variant"]: run["losses"] for run in model["runs"] if run["seed"] == seed}
    plain = np.array(by_variant.pop("plain"))
    styles: dict[str, dict[str, Any]] = {
        "inverted": {"color": COLOURS["inverted"], "linewidth": 2.4, "zorder": 3},
        CONTROL: {"color": COLOURS[CONTROL], "linewidth": 2.4, "linestyle": ":", "zorder": 4},
        **{name: {"color": colour, "linewidth": 1.5} for name, colour in zip(METHODS, METHOD_COLOURS, strict=True)},
    }
    for variant, losses in by_variant.items():
        distance = np.maximum(np.abs(np.array(losses) - plain), LEAST)
        label = METHODS[variant].title if variant in METHODS else variant
        axes.plot(_steps(model), distance, label=label, **styles[variant])
    _finish_distances(axes)
    figure.suptitle(f"{model['title']}, seed {seed}: distance of the loss from the plain run's", fontsize=11)
    finish(axes, grid="both")
    # The labels are long.
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, fontsize=9, columnspacing=1.4)
    return figure


def _draw_band(
    axes: Axes, steps: Sequence[int], values: np.ndarray, variant: str, label: str, style: Mapping[str, Any]
) -> None:
    colour = COLOURS[variant]
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.16, linewidth=0)
    axes.plot(steps, values.mean(axis=0), color=colour, label=label, **style)


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
