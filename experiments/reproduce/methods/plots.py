"""The plot of the part "methods": memory against gradient error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_invact.display.figures import GREY, new_figure

# Of the Okabe-Ito palette.
COLOURS = {"ours": "#D55E00", "exact": "#0072B2", "approximate": "#009E73"}
LABELS = {"ours": "ours", "exact": "exact methods", "approximate": "other approximations"}
BAND = 0.09  # of the axes' height: for errors that a log scale cannot show
BESIDE = 70.0  # percent: points to the left have room for their labels; the other labels form a column
ROW = 0.058  # of the height of the axes, for a label


@dataclass(frozen=True)
class Point:
    """A method, or several in the same place.

    Attributes:
        share: of the bytes that the plain model keeps, in percent.
        distance: 1 minus the cosine of the gradients; 0 if they are identical, NaN if they are not finite.
    """

    label: str
    family: str
    share: float
    distance: float


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """By the model's name, a plot with a panel for each dtype. Models that could not be measured have none."""
    settings = results["settings"]
    drawn: dict[str, Figure] = {}
    for model in settings["models"]:
        panels = {dtype: _points(results, model["name"], dtype) for dtype in settings["dtypes"]}
        if all(panels.values()):
            drawn[model["name"]] = _figure(model["title"], panels)
    return drawn


def _points(results: Mapping[str, Any], model: str, dtype: str) -> list[Point]:
    methods = results["settings"]["methods"]
    found = {
        entry["method"]: entry
        for entry in results["gradients"]
        if (entry["model"], entry["dtype"]) == (model, dtype) and "unavailable" not in entry
    }
    if "plain" not in found:
        return []
    places: dict[tuple[float, float, str], list[str]] = {}
    for name, entry in found.items():
        distance = 0.0 if entry["identical"] else entry["cosine_distance"]
        family = "exact" if methods[name]["exact"] else "ours" if name.startswith("inverted") else "approximate"
        share = round(100 * entry["kept_bytes"] / found["plain"]["kept_bytes"], 1)
        places.setdefault((share, math.nan if distance is None else distance, family), []).append(name)
    return [Point(", ".join(names), family, share, distance) for (share, distance, family), names in places.items()]


def _figure(title: str, panels: Mapping[str, Sequence[Point]]) -> Figure:
    figure = new_figure(height=0.9 + 3.6 * len(panels))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    every_axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (dtype, points) in zip(every_axes, panels.items(), strict=True):
        _draw(axes, points)
        _label(axes, points)
        axes.set_ylabel(f"{dtype}: 1 - cosine to the plain gradient")
    every_axes[-1].set_xlabel("kept for the backward pass, % of what the plain model keeps")
    handles, labels = every_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    sizes = [point.distance for point in points if point.distance > 0]
    low = math.floor(math.log10(min(sizes, default=1e-6)))
    high = math.ceil(math.log10(max(sizes, default=1e-2)))
    band = BAND * (high - low) / (1 - 2 * BAND)
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in range(low, high + 1, max(1, (high - low) // 5))}
    axes.set_yscale("log")
    axes.set_ylim(10 ** (low - band), 10 ** (high + band))
    axes.axhspan(10 ** (low - band), 10**low, color="#E8F1F8", zorder=0)
    ticks[10 ** (low - band / 2)] = "identical"
    if any(math.isnan(point.distance) for point in points):
        axes.axhspan(10**high, 10 ** (high + band), color="#F6E3E3", zorder=0)
        ticks[10 ** (high + band / 2)] = "NaN"
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlim(0, max(102.0, *(point.share + 2 for point in points)))
    for family, colour in COLOURS.items():
        chosen = [point for point in points if point.family == family]
        x, y = [point.share for point in chosen], [_height(axes, point) for point in chosen]
        look: dict[str, Any] = {"color": colour, "markersize": 7, "markeredgecolor": "white", "markeredgewidth": 0.7}
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "zorder": 3, "clip_on": False}
        axes.plot(x, y, "o", label=LABELS[family], **look, **place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _height(axes: Axes, point: Point) -> float:
    """As a share of the axes' height. What a log scale cannot show is in the middle of its band."""
    if not point.distance > 0:
        return BAND / 2 if point.distance == 0 else 1 - BAND / 2
    low, high = map(math.log10, axes.get_ylim())
    return (math.log10(point.distance) - low) / (high - low)


def _label(axes: Axes, points: Sequence[Point]) -> None:
    style: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "va": "center", "fontsize": 8.5}
    for point in (point for point in points if point.share < BESIDE):
        beside: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "color": COLOURS[point.family]}
        axes.annotate(point.label, (point.share, _height(axes, point)), **beside, **style)
    column = sorted((point for point in points if point.share >= BESIDE), key=lambda point: _order(axes, point))
    heights = _spread([_height(axes, point) for point in column])
    line: dict[str, Any] = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    for point, height in zip(column, heights, strict=True):
        place: dict[str, Any] = {
            "xytext": (1.05, height),
            "textcoords": "axes fraction",
            "color": COLOURS[point.family],
        }
        arrow: dict[str, Any] = {"arrowprops": {**line, "relpos": (0, 0.5)}, "annotation_clip": False}
        axes.annotate(point.label, (point.share, _height(axes, point)), **place, **arrow, **style)


def _order(axes: Axes, point: Point) -> tuple[float, float]:
    """From the bottom up. Within about one row the right one comes first, so that the lines do not cross."""
    return _height(axes, point) // ROW, -point.share


def _spread(heights: Sequence[float]) -> list[float]:
    """Move roughly ascending heights apart by at least a row: upwards, then down again from the top."""
    rows: list[float] = []
    for height in heights:
        rows.append(max(height, rows[-1] + ROW) if rows else max(height, 0.0))
    top = 1.0
    for index in reversed(range(len(rows))):
        rows[index] = min(rows[index], top)
        top = rows[index] - ROW
    return rows
