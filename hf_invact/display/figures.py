"""Figures of saved bytes, and the style that all figures share. No pyplot, no global state."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from .parts import PART_COLOURS, UNKNOWN_PART_COLOUR, ordered_parts
from .sizes import UNITS

GREY = "#8C8C8C"

WIDTH = 9.0  # inches: 54rem in the stylesheet of the report
DPI = 144
LEGEND_COLUMNS = 6


def in_unit(count: float, unit: str) -> str:
    """Bytes in one of `sizes.UNITS`, without the unit: one decimal, or three digits below 10."""
    value = count / UNITS[unit]
    return f"{value:,.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. The same figure gives the same bytes: neither date nor version is stored."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba()).convert("RGB")
    buffer = io.BytesIO()
    # With a palette, which is enough for these figures, the file is about a third of the size.
    pixels.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def saved_bytes_figure(parts: Mapping[str, Mapping[str, int]], unit: str = "MiB") -> Figure:
    """Bytes kept for the backward pass, as one stacked bar per variant.

    Parts that are too thin to see in any bar are neither drawn nor named, but are in the totals.

    Args:
        parts: variant -> part of the model -> bytes.
        unit: one of `sizes.UNITS`.
    """
    figure = new_figure(height=1.35 + 0.5 * len(parts))
    axes = figure.subplots()
    totals = [sum(of_part.values()) for of_part in parts.values()]
    ends = [0] * len(parts)
    for part in ordered_parts(parts.values()):
        if max(of_part.get(part, 0) for of_part in parts.values()) < max(totals) / 1000:
            continue
        colour = PART_COLOURS.get(part, UNKNOWN_PART_COLOUR)
        for row, of_part in enumerate(parts.values()):
            count = of_part.get(part, 0)
            left, width = ends[row] / UNITS[unit], count / UNITS[unit]
            axes.barh(
                row, width, left=left, color=colour, edgecolor="white", height=0.68, label=legend_label(part, row)
            )
            if count > 0.07 * max(totals):
                style: dict[str, Any] = {"ha": "center", "va": "center", "color": _ink(colour)}
                axes.text(left + width / 2, row, in_unit(count, unit), fontsize=8.5, **style)
            ends[row] += count
    texts = [f"{in_unit(total, unit)} {unit}" for total in totals]
    label_rows(axes, list(parts), texts, [total / UNITS[unit] for total in totals])
    axes.set_xlabel(f"kept for backward, {unit}")
    finish(axes, grid="x")
    return figure


def legend_label(label: str, row: int) -> str | None:
    """The label for the first row, and None for the others: a legend names each part once."""
    return label if row == 0 else None


def _ink(background: str) -> str:
    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.48 else "white"


def new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def label_rows(axes: Axes, names: list[str], texts: list[str], ends: Iterable[float]) -> None:
    """Write a name to the left of each bar and a text at its right end, and put the first bar on top.

    Args:
        axes: with one horizontal bar per row.
        names: of the bars.
        texts: at their right ends.
        ends: where the bars end, in units of the axis.
    """
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        axes.annotate(text, (end, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)


def finish(axes: Axes, grid: Literal["x", "both"]) -> None:
    """Apply the style that all axes share. The legend goes above the axes, in one row or two, so it hides no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(labels) if len(labels) <= LEGEND_COLUMNS else -(-len(labels) // 2)
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        axes.legend(handles, labels, ncols=columns, frameon=False, fontsize=9, columnspacing=1.4, **place)
