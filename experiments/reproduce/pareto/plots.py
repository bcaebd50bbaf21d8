"""Memory against step time as a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_invact.display.figures import GREY, finish, new_figure, png

from ...benchmark.steps.variants import PLAIN
from ..steps.variants import COMPILED
from .curves import Point, checkpointing, ours, points
from .variants import EVERY, OURS

Results = Mapping[str, Any]

MIB = 2**20
# Of the Okabe-Ito palette, as in the figure of step times.
COLOUR_OF_OURS, COLOUR_OF_COMPILERS, COLOUR_OF_OTHERS = "#D55E00", "#0072B2", "#000000"
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5}


def png_of(results: Results) -> bytes:
    """The figure of the results, as a PNG."""
    return png(pareto_figure(results))


def pareto_figure(results: Results) -> Figure:
    """A panel for each model: bytes kept to the right, time of a step upwards. Lower and further left is better."""
    entries = [entry for entry in results["entries"] if "variants" in entry]
    figure = new_figure(height=3.6 * max(len(entries), 1))
    for axes, entry in zip(figure.subplots(max(len(entries), 1), 1, squeeze=False).flat, entries, strict=False):
        _draw(axes, entry)
    return figure


def _draw(axes: Axes, entry: Results) -> None:
    _curve(axes, checkpointing(entry), COLOUR_OF_OTHERS, "checkpointing of every n-th layer", _step, (4, 5))
    _curve(axes, ours(entry), COLOUR_OF_OURS, "hf_invact, k layers checkpointed", _count, (-6, -12))
    if (compiled := points(entry).get(COMPILED)) is not None:
        axes.plot(compiled.kept / MIB, compiled.ratio, "s", color=COLOUR_OF_COMPILERS, label="torch.compile")
    size = " x ".join(map(str, entry["batch"]))
    axes.set_title(f"{entry['title']}, {entry['dtype']}, {size} tokens", fontsize=9.5, pad=22)  # above the legend
    axes.set_xlabel("kept for the backward pass, MiB", fontsize=8.5)
    axes.set_ylabel("time of a step, plain = 1", fontsize=8.5)
    axes.set_xlim(left=0)
    axes.axhline(1.0, color=GREY, linewidth=0.8, zorder=1)
    finish(axes, grid="both")


def _curve(
    axes: Axes,
    curve: Sequence[Point],
    colour: str,
    label: str,
    name: Callable[[Point], str],
    offset: tuple[float, float],
) -> None:
    axes.plot([point.kept / MIB for point in curve], [point.ratio for point in curve], "o-", color=colour, label=label)
    for point in curve:
        axes.annotate(name(point), (point.kept / MIB, point.ratio), xytext=offset, color=colour, **_SMALL)


def _step(point: Point) -> str:
    return "plain" if point.name == PLAIN else f"n = {point.name.removeprefix(EVERY)}"


def _count(point: Point) -> str:
    return f"k = {point.name.removeprefix(OURS)}"
