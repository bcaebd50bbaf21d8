"""Draws the figures of a results file. The only file of the benchmark that needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hf_invact.display.figures import DPI, GREY, WIDTH, png

from ..common.files import write_atomically
from .operators.implementations import COMPILED, INVERTED, LIGER, NATIVE
from .tables import MEMORY, label

# The Okabe-Ito palette, which people with any colour vision can tell apart.
COLOURS = {
    NATIVE: "#000000",
    "plain": "#000000",
    "inverted-triton": "#D55E00",
    "inverted-auto": "#D55E00",
    "inverted-eager": "#E69F00",
    "inverted-compile": "#0072B2",
    COMPILED: "#56B4E9",
    "fused": "#56B4E9",
    LIGER: "#CC79A7",
    "checkpointing": "#009E73",
}
DASHES: dict[str, Any] = {"forward": "-", "backward": (0, (4, 2))}
MARKERS = {"forward": "o", "backward": "s"}
PLAIN_RATIO = {"median": 1.0, "low": 1.0, "high": 1.0}
COLUMNS = 4


def write_figures(content: Mapping[str, Any], path: Path) -> list[Path]:
    """Draw the figures of a results file beside it.

    Returns:
        The paths: ``NAME-operators.png`` and ``NAME-steps.png``.
    """
    figures = {}
    operators = [entry for entry in content["operators"] if "forward" in entry]
    steps = [entry for entry in content["steps"] if "step_ms" in entry.get("variants", {}).get("plain", {})]
    if operators:
        figures["operators"] = operator_figure(operators, content["settings"]["dtypes"][0])
    if steps:
        figures["steps"] = step_figure(steps, content["device"]["kind"])
    written = []
    for name, figure in figures.items():
        written.append(path.with_name(f"{path.stem}-{name}.png"))
        write_atomically(written[-1], png(figure))
    return written


def operator_figure(entries: list[dict[str, Any]], dtype: str) -> Figure:
    """Share of a copy's bandwidth by size: a panel for each operator, a line for each implementation."""
    names = list(dict.fromkeys(entry["operator"] for entry in entries))
    figure, panels = _panels(len(names) + 1, COLUMNS, height=2.3)
    drawn: dict[str, None] = {}
    for axes, name in zip(panels, names, strict=False):
        of_operator = [entry for entry in entries if (entry["operator"], entry["dtype"]) == (name, dtype)]
        shares = _shares(of_operator)
        for (implementation, direction), of_size in shares.items():
            style: dict[str, Any] = {"linestyle": DASHES[direction], "marker": MARKERS[direction], "markersize": 4}
            rank = 4 if implementation.startswith(INVERTED) else 3
            colour = _colour(implementation)
            axes.plot(list(of_size), list(of_size.values()), color=colour, linewidth=1.5, zorder=rank, **style)
            drawn[implementation] = None
        highest = max((max(of_size.values()) for of_size in shares.values()), default=0.0)
        axes.set_title(f"{name}, {dtype}", fontsize=9.5)
        axes.set_xscale("log", base=2)
        axes.axhline(1.0, color=GREY, linewidth=0.8, zorder=1)
        axes.margins(x=0.08)
        axes.set_ylim(0, max(1.1, 1.05 * highest))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _finish(axes)
    for axes in panels[::COLUMNS]:
        axes.set_ylabel("share of a copy's bandwidth", fontsize=9)
    for axes in panels[max(0, len(names) - COLUMNS) : len(names)]:
        axes.set_xlabel("elements", fontsize=9)
    handles = [Line2D([], [], color=_colour(key), linewidth=3, label=label(key)) for key in drawn]
    handles += [
        Line2D([], [], color=GREY, linestyle=DASHES[each], marker=MARKERS[each], markersize=4, label=each)
        for each in DASHES
    ]
    _legend(panels[len(names)], handles)
    for axes in panels[len(names) + 1 :]:
        axes.set_axis_off()
    return figure


def step_figure(entries: list[dict[str, Any]], kind: str) -> Figure:
    """Memory against the time of a training step: a panel for each model, a point for each variant.

    A line spans the ratios of all rounds, from the smallest to the largest.
    """
    key, unit, title = MEMORY[kind]
    figure, panels = _panels(len(entries), 2, height=2.7)
    drawn: dict[str, None] = {}
    for axes, entry in zip(panels, entries, strict=False):
        variants = {name: facts for name, facts in entry["variants"].items() if "step_ms" in facts}
        for name, facts in variants.items():
            ratio, memory = facts.get("ratio", PLAIN_RATIO), facts[key] / unit
            axes.plot(ratio["median"], memory, "o", color=_colour(name), markersize=8, zorder=3)
            ends = [ratio["low"], ratio["high"]]
            axes.plot(ends, [memory, memory], color=_colour(name), linewidth=1.4, alpha=0.6, zorder=2)
        drawn |= dict.fromkeys(variants)
        axes.set_title(f"{entry['title']}: plain {variants['plain']['step_ms']:,.1f} ms", fontsize=9.5)
        axes.margins(0.15)
        axes.set_ylim(bottom=0)
        _finish(axes)
        axes.set_xlabel("time of a training step, plain = 1", fontsize=9)
    for axes in panels[::2]:
        axes.set_ylabel(title, fontsize=9)
    points = [_point(name) for name in drawn]
    figure.legend(handles=points, loc="outside lower center", ncols=len(points), frameon=False, fontsize=9)
    for axes in panels[len(entries) :]:
        axes.set_axis_off()
    return figure


def _shares(entries: list[dict[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """Shares of the copy's bandwidth by elements, for each implementation and direction."""
    shares: dict[tuple[str, str], dict[int, float]] = {}
    for entry in sorted(entries, key=lambda entry: int(entry["elements"])):
        for direction in DASHES:
            for name, figures in entry[direction]["implementations"].items():
                if figures.get("copy_share") is not None:
                    shares.setdefault((name, direction), {})[entry["elements"]] = figures["copy_share"]
    return shares


def _panels(count: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.3 + height * rows), dpi=DPI, layout="constrained", facecolor="white")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _colour(name: str) -> str:
    return COLOURS.get(name, GREY)


def _point(name: str) -> Line2D:
    return Line2D([], [], color=_colour(name), marker="o", linestyle="none", markersize=8, label=label(name))


def _legend(axes: Axes, handles: list[Line2D]) -> None:
    axes.set_axis_off()
    axes.legend(handles=handles, loc="center left", frameon=False, fontsize=9)


def _finish(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
