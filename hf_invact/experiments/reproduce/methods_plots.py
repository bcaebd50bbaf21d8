"""The plot of the part "methods": memory against gradient error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ...memory.plots import GREY, new_figure

# Of the Okabe-Ito palette.
COLOURS = {"ours": "#D55E00", "exact": "#0072B2", "approximate": "#009E73"}
LABELS = {"ours": "ours", "exact": "exact methods", "approximate": "other approximations"}
BAND = 0.09  # of the height of the axes: where the errors stand that a log scale has no place for
# Where a label may stand beside its point, in points; the first one that is free is taken.
PLACES = [
    (dx, dy, "left" if dx > 0 else "right" if dx < 0 else "center")
    for far in (1, 2, 3, 4)
    for dx, dy in ((8, 0), (-8, 0), (0, 10 * far), (0, -10 * far), (8, 9 * far), (8, -9 * far), (-8, 9 * far), (-8, -9 * far))
]


@dataclass(frozen=True)
class Point:
    """A method, or several in the same place.

    Attributes:
        share: of the bytes that the plain model keeps, in percent.
        distance: 1 minus the cosine of the gradients; 0 where they are identical, NaN where they are no numbers.
    """

    label: str
    family: str
    share: float
    distance: float


def figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    """By the model's name, the plot with a panel for each dtype; none of models that could not be measured."""
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
        _draw(axes, dtype, points)
    every_axes[-1].set_xlabel("kept for the backward pass, % of what the plain model keeps")
    handles, labels = every_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), frameon=False, fontsize=9)
    FigureCanvasAgg(figure).draw()  # only then it is known where the points are
    for axes, points in zip(every_axes, panels.values(), strict=True):
        _label(axes, points)
    return figure


def _draw(axes: Axes, dtype: str, points: Sequence[Point]) -> None:
    sizes = [point.distance for point in points if point.distance > 0]
    low = math.floor(math.log10(min(sizes, default=1e-6))) - 1
    high = math.ceil(math.log10(max(sizes, default=1e-2))) + 1
    decades = (high - low) / (1 - 2 * BAND)
    axes.set_yscale("log")
    axes.set_ylim(10 ** (low - BAND * decades), 10 ** (high + BAND * decades))
    axes.set_yticks([10.0**power for power in range(low + 1, high + 1, max(1, (high - low) // 6))])
    axes.minorticks_off()
    axes.set_xlim(0, max(110.0, *(point.share + 10 for point in points)))
    axes.set_ylabel(f"{dtype}: 1 - cosine to the plain gradient")
    axes.axhspan(*axes.get_ylim()[:1], 10**low, color="#E8F1F8", zorder=0)
    axes.text(0.995, 0.01, "identical gradients", transform=axes.transAxes, ha="right", va="bottom", color="#595959", fontsize=8)
    if any(math.isnan(point.distance) for point in points):
        axes.axhspan(10**high, axes.get_ylim()[1], color="#F6E3E3", zorder=0)
        axes.text(0.995, 0.99, "not a number", transform=axes.transAxes, ha="right", va="top", color="#595959", fontsize=8)
    for family, colour in COLOURS.items():
        chosen = [point for point in points if point.family == family]
        places = [_place(axes, point) for point in chosen]
        axes.plot([x for x, _ in places], [y for _, y in places], "o", color=colour, markersize=7, label=LABELS[family], zorder=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)


def _place(axes: Axes, point: Point) -> tuple[float, float]:
    """In the data's units. What has no place on a log scale stands in the middle of its band."""
    if point.distance > 0:
        return point.share, point.distance
    low, high = map(math.log10, axes.get_ylim())
    share = BAND / 2 if point.distance == 0 else 1 - BAND / 2
    return point.share, 10 ** (low + share * (high - low))


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """A label for each point, where it covers neither a point nor another label, if there is such a place."""
    scale = axes.figure.dpi / 72
    centres = [axes.transData.transform(_place(axes, point)) for point in points]
    taken = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in centres]
    inside = axes.get_window_extent()
    for point in points:
        for dx, dy, align in PLACES:
            text = axes.annotate(
                *(point.label, _place(axes, point), (dx, dy)),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=8.5,
                color=COLOURS[point.family],
                arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            )
            box = text.get_window_extent()
            box = Bbox.from_extents(box.x0, box.y0, box.x1, box.y1).padded(1 * scale)
            is_inside = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            dx, dy, align = PLACES[0]
            text = axes.annotate(
                *(point.label, _place(axes, point), (dx, dy)), textcoords="offset points", ha=align, va="center", fontsize=8.5
            )
            box = text.get_window_extent()
        taken.append(box)
