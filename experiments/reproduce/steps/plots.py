"""The step times as a figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_invact.display.figures import GREY, finish, new_figure, png

Results = Mapping[str, Any]

# Of the Okabe-Ito palette, by the beginning of the variant's name.
OURS, COMPILERS, OTHERS = "#D55E00", "#0072B2", "#000000"
COLUMNS = 2


def png_of(results: Results) -> bytes:
    """The figure of the results, as a PNG."""
    return png(step_time_figure(results))


def step_time_figure(results: Results) -> Figure:
    """Step time relative to the plain one: a panel for each model, a row for each variant.

    A point is the median, the thick line spans the quartiles, the thin one all ratios.
    """
    entries = [entry for entry in results["entries"] if "variants" in entry]
    titles = {
        name: facts["title"]
        for entry in entries
        for name, facts in entry["variants"].items()
        if any("ratio" in each["variants"].get(name, {}) for each in entries)
    }
    columns = min(COLUMNS, max(len(entries), 1))
    lines = -(-len(entries) // columns)
    figure = new_figure(height=0.4 + lines * (0.7 + 0.2 * len(titles)))
    panels = list(figure.subplots(max(lines, 1), columns, sharey=True, squeeze=False).flat)
    for axes, entry in zip(panels, entries, strict=False):
        _draw(axes, entry, titles)
    for axes in panels[len(entries) :]:
        axes.set_axis_off()
    return figure


def _draw(axes: Axes, entry: Results, titles: Mapping[str, str]) -> None:
    axes.axvline(1.0, color=GREY, linewidth=1.0, zorder=1)
    for row, name in enumerate(titles):
        ratio = entry["variants"].get(name, {}).get("ratio")
        if ratio is None:
            axes.annotate("not measured", (1.0, row), xytext=(5, 0), textcoords="offset points", va="center", **_SMALL)
            continue
        colour = _colour(name)
        axes.plot([ratio["low"], ratio["high"]], [row, row], color=colour, linewidth=1.0, zorder=2)
        axes.plot([ratio["lower"], ratio["upper"]], [row, row], color=colour, linewidth=3.2, alpha=0.6, zorder=2)
        axes.plot(ratio["median"], row, "o", color=colour, markersize=4.5, zorder=3)
    axes.set_yticks(range(len(titles)), list(titles.values()))
    axes.set_ylim(len(titles) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8.5)
    plain = entry["variants"]["plain"]
    of_plain = f": plain {plain['step_ms']:,.0f} ms" if "step_ms" in plain else ""
    axes.set_title(f"{entry['title']}{of_plain}", fontsize=9.5)
    axes.set_xlabel("time of a training step, plain = 1", fontsize=8.5)
    finish(axes, grid="x")


_SMALL: dict[str, Any] = {"fontsize": 7, "color": GREY}


def _colour(name: str) -> str:
    return COMPILERS if name.startswith("compiled") else OURS if name.startswith("inverted") else OTHERS
