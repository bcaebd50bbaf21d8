"""The figures of a comparison. They take plain mappings, and use Figure objects: no pyplot, no global state."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

Curve = Mapping[int, float]
"""Training loss by step."""

VARIANTS = ("plain", "fused", "inverted")

# The Okabe-Ito palette, which people with any colour vision can tell apart.
VARIANT_COLOURS = {"plain": "#0072B2", "fused": "#009E73", "inverted": "#D55E00"}
PART_COLOURS = {
    "activation": "#D55E00",
    "mlp": "#E69F00",
    "attention": "#0072B2",
    "norm": "#56B4E9",
    "dropout": "#009E73",
    "embedding": "#CC79A7",
    "head and loss": "#F0E442",
    "other": "#999999",
}
GREY = "#8C8C8C"

WIDTH = 9.0  # inches: 54rem in the stylesheet of the report
DPI = 144
MIB = 2**20


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


def mebibytes(count: float) -> str:
    """Bytes as MiB, without the unit: one decimal, or three digits where the number is small."""
    value = count / MIB
    return f"{value:,.1f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def loss_figure(curves: Mapping[str, Mapping[int, Curve]]) -> Figure:
    """Loss per step, and below it the distance from the plain run of the same seed on a log scale.

    Args:
        curves: variant -> seed -> step -> loss. The first seed of a variant is drawn in full strength, the plain runs
            of the others lightly behind it. Losses that are not finite leave a gap and a cross at the top.
    """
    figure = _figure(height=5.6)
    losses, differences = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, curves)
    _draw_differences(differences, curves)
    for axes in (losses, differences):
        _finish(axes, grid="both")
    differences.set_xlabel("training step")
    differences.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def saved_bytes_figure(parts: Mapping[str, Mapping[str, int]]) -> Figure:
    """What is kept for backward, as one stacked bar per variant.

    Args:
        parts: variant -> part of the model -> bytes.
    """
    figure = _figure(height=1.35 + 0.5 * len(parts))
    axes = figure.subplots()
    totals = [sum(of_part.values()) for of_part in parts.values()]
    ends = [0] * len(parts)
    for part in ordered_parts(parts.values()):
        colour = PART_COLOURS.get(part, GREY)
        for row, of_part in enumerate(parts.values()):
            count = of_part.get(part, 0)
            left, width = ends[row] / MIB, count / MIB
            axes.barh(row, width, left=left, color=colour, edgecolor="white", height=0.68, label=_once(part, row))
            if count > 0.07 * max(totals):
                style: dict[str, Any] = {"ha": "center", "va": "center", "color": _ink(colour)}
                axes.text(left + width / 2, row, mebibytes(count), fontsize=8.5, **style)
            ends[row] += count
    _label_rows(axes, list(parts), [f"{mebibytes(total)} MiB" for total in totals], totals)
    axes.set_xlabel("kept for backward, MiB")
    _finish(axes, grid="x")
    return figure


def peak_memory_figure(peaks: Mapping[str, Mapping[str, int]]) -> Figure:
    """Peak CUDA memory as one bar per variant.

    Args:
        peaks: variant -> "allocated" and "reserved" -> bytes.
    """
    figure = _figure(height=1.25 + 0.5 * len(peaks))
    axes = figure.subplots()
    for row, peak in enumerate(peaks.values()):
        axes.barh(row, peak["reserved"] / MIB, color="#D0D0D0", height=0.68, label=_once("reserved", row))
        axes.barh(row, peak["allocated"] / MIB, color="#0072B2", height=0.4, label=_once("allocated", row))
    texts = [f"{mebibytes(peak['allocated'])} of {mebibytes(peak['reserved'])} MiB" for peak in peaks.values()]
    _label_rows(axes, list(peaks), texts, [peak["reserved"] for peak in peaks.values()])
    axes.set_xlabel("peak CUDA memory, MiB")
    _finish(axes, grid="x")
    return figure


def ordered_parts(tables: Iterable[Mapping[str, int]]) -> list[str]:
    """The parts that keep anything in any of the tables, in the order of the palette; unknown ones come last."""
    used = dict.fromkeys(part for table in tables for part, count in table.items() if count)
    known = list(PART_COLOURS)
    return sorted(used, key=lambda part: known.index(part) if part in known else len(known))


def _draw_losses(axes: Axes, curves: Mapping[str, Mapping[int, Curve]]) -> None:
    plain, inverted = curves.get("plain", {}), curves.get("inverted", {})
    # A dashed line over a wider solid one: where they coincide, both still show.
    for seed, curve in list(plain.items())[:1]:
        label = _seed_label("plain", plain, seed)
        _plot(axes, curve, label=label, color=VARIANT_COLOURS["plain"], linewidth=3.6, alpha=0.7, zorder=2)
    for seed, curve in list(inverted.items())[:1]:
        label, dashes = _seed_label("inverted", inverted, seed), (0, (4, 3))
        _plot(axes, curve, label=label, color=VARIANT_COLOURS["inverted"], linewidth=1.7, linestyle=dashes, zorder=3)
    for seed, curve in list(plain.items())[1:]:
        _plot(axes, curve, label=_seed_label("plain", plain, seed), color="#9DB8C9", linewidth=1.2, zorder=1.5)
    broken = {step for of_seed in (plain, inverted) for curve in of_seed.values() for step in _not_finite(curve)}
    _mark(axes, broken, height=1.0, marker="x", color="black", label="not finite")
    axes.set_ylabel("training loss")


def _draw_differences(axes: Axes, curves: Mapping[str, Mapping[int, Curve]]) -> None:
    plain, inverted = curves.get("plain", {}), curves.get("inverted", {})
    fused = dict(list(curves.get("fused", {}).items())[:1])
    spread = _spread(list(plain.values()))
    if spread:
        _plot(axes, _positive(spread), color=GREY, linewidth=1.2, label="between plain seeds")
    drawn: list[Curve] = [spread]
    zeros: dict[str, set[int]] = {}
    for variant, of_seed in (("fused", fused), ("inverted", inverted)):
        differences = {seed: _distance(curve, plain.get(seed, {})) for seed, curve in of_seed.items()}
        for rank, (seed, difference) in enumerate(differences.items()):
            style = {"label": _seed_label(variant, of_seed, seed), "alpha": 0.9 if rank == 0 else 0.4}
            _plot(axes, _positive(difference), color=VARIANT_COLOURS[variant], linewidth=1.3, marker=".", **style)
        zeros[variant] = {step for curve in differences.values() for step, value in curve.items() if value == 0}
        drawn.extend(differences.values())

    axes.set_yscale("log")
    if not any(0 < value < math.inf for curve in drawn for value in curve.values()):
        axes.set_ylim(1e-8, 1.0)  # with nothing to scale to, limits that do not suggest a large difference
    # A log scale has no place for zeros: they get a mark on the axis instead.
    marked = [variant for variant, steps in zeros.items() if steps]
    for variant in marked:
        label = "exactly 0" if variant == marked[-1] else None
        _mark(axes, zeros[variant], height=0.0, marker="D", color=VARIANT_COLOURS[variant], label=label)
    axes.set_ylabel("|loss difference|")


def _mark(axes: Axes, steps: Collection[int], *, height: float, marker: str, color: str, label: str | None) -> None:
    """Mark steps at a height of the axes (0: bottom, 1: top), whatever the data's scale."""
    if steps:
        look: dict[str, Any] = {"color": color, "markerfacecolor": "white", "markersize": 4, "linestyle": "none"}
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        axes.plot(sorted(steps), [height] * len(steps), marker=marker, label=label, **look, **place)


def _seed_label(variant: str, of_seed: Mapping[int, Curve], seed: int) -> str | None:
    """The legend names the first seed, and the others by number only where there is just one."""
    rank = list(of_seed).index(seed)
    if rank == 0 or len(of_seed) == 2:
        return f"{variant}, seed {seed}"
    return f"{variant}, other seeds" if rank == 1 else None


def _distance(curve: Curve, other: Curve) -> Curve:
    return {step: abs(loss - other[step]) for step, loss in curve.items() if step in other}


def _spread(curves: list[Curve]) -> Curve:
    """Largest difference between any two curves at each step that all of them have; empty for a single curve."""
    if len(curves) < 2:
        return {}
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    losses = {step: [curve[step] for curve in curves] for step in steps}
    return {step: max(at) - min(at) for step, at in losses.items() if all(map(math.isfinite, at))}


def _positive(curve: Curve) -> Curve:
    return {step: value if value > 0 else math.nan for step, value in curve.items()}


def _not_finite(curve: Curve) -> list[int]:
    return [step for step, loss in curve.items() if not math.isfinite(loss)]


def _plot(axes: Axes, curve: Curve, **style: Any) -> None:
    values = [value if math.isfinite(value) else math.nan for value in curve.values()]
    if len(values) < 3:  # too few points for a line
        style.setdefault("marker", "o")
    axes.plot(list(curve), values, **style)


def _once(label: str, row: int) -> str | None:
    """A legend names each thing once: with its first bar or line."""
    return label if row == 0 else None


def _ink(background: str) -> str:
    red, green, blue = to_rgb(background)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.48 else "white"


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")


def _label_rows(axes: Axes, names: list[str], texts: list[str], ends: Iterable[float]) -> None:
    """Name each bar at its left, say its size at its right end, and put the first bar on top."""
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    for row, (text, end) in enumerate(zip(texts, ends, strict=True)):
        axes.annotate(text, (end / MIB, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.2)
    axes.set_xlim(left=0)


def _finish(axes: Axes, grid: Literal["x", "both"]) -> None:
    """The look that all axes share. The legend stands above them, where it hides no data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#E6E6E6", linewidth=0.7)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.2}
        axes.legend(handles, labels, ncols=len(labels), frameon=False, fontsize=9, columnspacing=1.4, **place)
