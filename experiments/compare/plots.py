"""The figures of a comparison, except that of the saved bytes. They take plain mappings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hf_invact.display.figures import GREY, finish, in_unit, label_rows, legend_label, new_figure

from ..common.colours import VARIANT_COLOURS

Curve = Mapping[int, float]
"""Training loss by step."""

VARIANTS = ("plain", "fused", "inverted")
MIB = 2**20


def mebibytes(count: float) -> str:
    """Bytes as MiB, without the unit."""
    return in_unit(count, "MiB")


def loss_figure(curves: Mapping[str, Mapping[int, Curve]]) -> Figure:
    """Loss per step, and below it the distance from the plain run of the same seed on a log scale.

    Args:
        curves: variant -> seed -> step -> loss. The first seed of a variant is drawn in full strength, and the plain
            runs of the others lightly behind it. Losses that are not finite leave a gap, and a cross at the top.
    """
    figure = new_figure(height=5.6)
    losses, differences = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_losses(losses, curves)
    _draw_differences(differences, curves)
    for axes in (losses, differences):
        finish(axes, grid="both")
    differences.set_xlabel("training step")
    differences.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def peak_memory_figure(peaks: Mapping[str, Mapping[str, int]]) -> Figure:
    """Peak CUDA memory as one bar per variant.

    Args:
        peaks: variant -> "allocated" and "reserved" -> bytes.
    """
    figure = new_figure(height=1.25 + 0.5 * len(peaks))
    axes = figure.subplots()
    for row, peak in enumerate(peaks.values()):
        axes.barh(row, peak["reserved"] / MIB, color="#D0D0D0", height=0.68, label=legend_label("reserved", row))
        axes.barh(row, peak["allocated"] / MIB, color="#0072B2", height=0.4, label=legend_label("allocated", row))
    texts = [f"{mebibytes(peak['allocated'])} of {mebibytes(peak['reserved'])} MiB" for peak in peaks.values()]
    label_rows(axes, list(peaks), texts, [peak["reserved"] / MIB for peak in peaks.values()])
    axes.set_xlabel("peak CUDA memory, MiB")
    finish(axes, grid="x")
    return figure


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
    broken = {step for of_seed in curves.values() for curve in of_seed.values() for step in _not_finite(curve)}
    _mark(axes, broken, height=1.0, marker="x", color="black", label="diverged: not finite")
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
        axes.set_ylim(1e-8, 1.0)  # without data to scale to, these limits do not suggest a large difference
    # A log scale cannot show zeros: they get a mark on the axis instead.
    marked = [variant for variant, steps in zeros.items() if steps]
    for variant in marked:
        label = "exactly 0" if variant == marked[-1] else None
        _mark(axes, zeros[variant], height=0.0, marker="D", color=VARIANT_COLOURS[variant], label=label)
    axes.set_ylabel("|loss difference|")


def _mark(axes: Axes, steps: Collection[int], *, height: float, marker: str, color: str, label: str | None) -> None:
    """Mark steps at a height of the axes (0: bottom, 1: top), whatever the data's scale."""
    if steps:
        style: dict[str, Any] = {"color": color, "markerfacecolor": "white", "markersize": 4, "linestyle": "none"}
        place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 5}
        axes.plot(sorted(steps), [height] * len(steps), marker=marker, label=label, **style, **place)


def _seed_label(variant: str, of_seed: Mapping[int, Curve], seed: int) -> str | None:
    """The legend names the first seed; of the others, it gives the number only if there is one."""
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
