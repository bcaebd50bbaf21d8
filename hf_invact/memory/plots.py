"""What is kept for backward as a figure, and the look of all figures. No pyplot, no global state."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from .text import UNITS

# The Okabe-Ito palette, which people with any colour vision can tell apart.
PART_COLOURS = {
    "activation": "#D55E00",
    "mlp": "#E69F00",
    "attention": "#0072B2",
    "norm": "#56B4E9",
    "dropout": "#009E73",
    "embedding": "#CC79A7",
    "checkpoints": "#000000",
    "head and loss": "#F0E442",
    "other": "#999999",
}
GREY = "#8C8C8C"
OF_NO_PART = "#4D4D4D"

WIDTH = 9.0  # inches: 54rem in the stylesheet of the report
DPI = 144
LEGEND_ROW = 6


def in_unit(count: float, unit: str) -> str:
    """Bytes in one of `text.UNITS`, without the unit: one decimal, or three digits where the number is small."""
    value = count / UNITS[unit]
    return f"{value:,.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def png(figure: Figure) -> bytes:
    """The figure as a PNG file. The same figure gives the same bytes: no date and no version is stored."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba()).convert("RGB")
    buffer = io.BytesIO()
    # Few colours are in use, and a palette makes the file about three times smaller.
    pixels.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(DPI, DPI))
    return buffer.getvalue()


def saved_bytes_figure(parts: Mapping[str, Mapping[str, int]], unit: str = "MiB") -> Figure:
    """What is kept for backward, as one stacked bar per variant.

    Args:
        parts: variant -> part of the model -> bytes.
        unit: one of `text.UNITS`.
    """
    figure = new_figure(height=1.35 + 0.5 * len(parts))
    axes = figure.subplots()
    totals = [sum(of_part.values()) for of_part in parts.values()]
    ends = [0] * len(parts)
    for part in ordered_parts(parts.values()):
        colour = PART_COLOURS.get(part, OF_NO_PART)
        for row, of_part in enumerate(parts.values()):
            count = of_part.get(part, 0)
            left, width = ends[row] / UNITS[unit], count / UNITS[unit]
            axes.barh(row, width, left=left, color=colour, edgecolor="white", height=0.68, label=once(part, row))
            if count > 0.07 * max(totals):
                style: dict[str, Any] = {"ha": "center", "va": "center", "color": _ink(colour)}
                axes.text(left + width / 2, row, in_unit(count, unit), fontsize=8.5, **style)
            ends[row] += count
    texts = [f"{in_unit(total, unit)} {unit}" for total in totals]
    label_rows(axes, list(parts), texts, [total / UNITS[unit] for total in totals])
    axes.set_xlabel(f"kept for backward, {unit}")
    finish(axes, grid="x")
    return figure


def ordered_parts(tables: Iterable[Mapping[str, int]]) -> list[str]:
    """The parts that keep anything in any of the tables, in the order of the palette; unknown ones come last."""
    used = dict.fromkeys(part for table in tables for part, count in table.items() if count)
    known = list(PART_COLOURS)
    return sorted(used, key=lambda part: known.index(part) if part in known else len(known))


def once(label: str, row: int) -> str | None:
    """A legend names each thing once: with its first bar or line."""
    return label if row == 0 else None


def _ink(background: str) -> str:
    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.48 else "white"


def new_figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def label_rows(axes: Axes, names: list[str], texts: list[str], ends: Iterable[float]) -> None:
    """Name each bar at its left, say its size at its right end (in units of the axis), and put the first bar on top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        axes.annotate(text, (end, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)


def finish(axes: Axes, grid: Literal["x", "both"]) -> None:
    """The look that all axes share. The legend stands above them, where it hides no data, in one row or two."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = len(labels) if len(labels) <= LEGEND_ROW else -(-len(labels) // 2)
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        axes.legend(handles, labels, ncols=columns, frameon=False, fontsize=9, columnspacing=1.4, **place)
