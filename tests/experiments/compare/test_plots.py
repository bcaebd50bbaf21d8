"""The figures of a comparison: what they draw, read back from the axes."""

from __future__ import annotations

import io
import math
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.compare import plots
from hf_invact.display.figures import DPI, WIDTH, png

MIB = 2**20
PLAIN = {1: 3.0, 2: 2.0, 3: 1.5}


def _lines(figure: Figure, axes: int) -> dict[str, list[float]]:
    return {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in figure.axes[axes].get_lines()}


def _drawn(figure: Figure) -> Image.Image:
    """The figure as an image; drawing it must not warn (of data that a scale cannot show, of glyphs, of layout)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Image.open(io.BytesIO(png(figure)))


def test_loss_figure_draws_both_curves_and_their_distance() -> None:
    curves = {
        "plain": {0: PLAIN, 1: {1: 3.5, 2: 2.25, 3: 1.0}},
        "inverted": {0: {1: 3.0, 2: 2.125, 3: 1.25}},
        "fused": {0: {1: 3.0, 2: 2.0, 3: 1.75}},
    }
    figure = plots.loss_figure(curves)
    losses, differences = _lines(figure, 0), _lines(figure, 1)
    assert losses == {
        "plain, seed 0": [3.0, 2.0, 1.5],
        "inverted, seed 0": [3.0, 2.125, 1.25],
        "plain, seed 1": [3.5, 2.25, 1.0],
    }
    assert differences["inverted, seed 0"][1:] == [0.125, 0.25]
    assert differences["fused, seed 0"][2] == 0.25
    assert differences["between plain seeds"] == [0.5, 0.25, 0.5]
    assert figure.axes[1].get_yscale() == "log"
    assert _drawn(figure).size == (round(WIDTH * DPI), round(5.6 * DPI))


def test_inverted_is_dashed_on_top_of_plain() -> None:
    lines = {
        line.get_label(): line
        for line in plots.loss_figure({"plain": {0: PLAIN}, "inverted": {0: PLAIN}}).axes[0].get_lines()
    }
    plain, inverted = lines["plain, seed 0"], lines["inverted, seed 0"]
    assert inverted.get_zorder() > plain.get_zorder()
    assert inverted.get_linewidth() < plain.get_linewidth()
    assert inverted.is_dashed()
    assert not plain.is_dashed()


def test_identical_curves_are_marked_as_zero() -> None:
    figure = plots.loss_figure({"plain": {0: PLAIN}, "inverted": {0: PLAIN}})
    differences = _lines(figure, 1)
    assert all(math.isnan(value) for value in differences["inverted, seed 0"])
    assert differences["exactly 0"] == [0.0, 0.0, 0.0]  # at the bottom of the axes, in their own coordinates
    assert figure.axes[1].get_ylim() == (1e-8, 1.0)
    _drawn(figure)


@pytest.mark.parametrize("loss", [math.nan, math.inf], ids=str)
def test_losses_that_are_not_finite_are_marked(loss: float) -> None:
    figure = plots.loss_figure({"plain": {0: PLAIN, 1: PLAIN}, "inverted": {0: {1: 3.0, 2: loss, 3: loss}}})
    crosses = next(line for line in figure.axes[0].get_lines() if line.get_label() == "diverged: not finite")
    assert np.asarray(crosses.get_xdata()).tolist() == [2, 3]
    assert all(math.isnan(value) for value in _lines(figure, 0)["inverted, seed 0"][1:])
    _drawn(figure)


@pytest.mark.parametrize(
    "curves",
    [{}, {"plain": {0: {}}}, {"plain": {0: PLAIN}}, {"inverted": {0: PLAIN}}, {"plain": {0: {1: math.nan}}}],
    ids=["nothing", "no-steps", "plain-only", "inverted-only", "one-nan"],
)
def test_incomplete_curves_can_be_drawn(curves: dict[str, dict[int, plots.Curve]]) -> None:
    _drawn(plots.loss_figure(curves))


def test_many_seeds_do_not_crowd_the_legends() -> None:
    seeds = {seed: {step: loss + seed / 10 for step, loss in PLAIN.items()} for seed in range(8)}
    figure = plots.loss_figure({"plain": seeds, "inverted": seeds, "fused": seeds})
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert len(legend.get_texts()) <= 5
    _drawn(figure)
    widths = [axes.get_position().width for axes in figure.axes]
    assert min(widths) > 0.85  # a legend wider than the figure would squeeze the axes


def test_peak_memory_shows_allocated_within_reserved() -> None:
    figure = plots.peak_memory_figure({"plain": {"allocated": 1536 * MIB, "reserved": 2048 * MIB}})
    assert [bar.get_width() for bars in figure.axes[0].containers for bar in bars] == [2048.0, 1536.0]
    assert [text.get_text() for text in figure.axes[0].texts] == ["1,536.0 of 2,048.0 MiB"]
    _drawn(figure)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0"), (MIB // 2, "0.5"), (1.254 * MIB, "1.25"), (1234.56 * MIB, "1,234.6")]
)
def test_mebibytes(count: float, text: str) -> None:
    assert plots.mebibytes(count) == text


def test_global_settings_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    png(plots.loss_figure({"plain": {0: PLAIN}}))
    assert dict(matplotlib.rcParams) == before
