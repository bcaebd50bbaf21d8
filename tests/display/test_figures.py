"""The figure of saved bytes, read back from the axes."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from hf_invact.display import figures
from hf_invact.display.parts import PART_COLOURS, ordered_parts
from hf_invact.memory import PARTS

MIB = 2**20


def test_saved_bytes_are_stacked() -> None:
    parts = {
        "plain": {"mlp": 12 * MIB, "activation": 24 * MIB, "embedding": 0},
        "inverted": {"mlp": 12 * MIB, "activation": MIB // 2},
    }
    figure = figures.saved_bytes_figure(parts)
    bars = {str(bars.get_label()): bars for bars in figure.axes[0].containers}
    spans = [(bar.get_x(), bar.get_width()) for container in figure.axes[0].containers for bar in container]
    assert spans == [(0.0, 24.0), (0.0, 0.5), (24.0, 12.0), (0.5, 12.0)]
    assert "embedding" not in bars
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert texts == {"24.0", "12.0", "36.0 MiB", "12.5 MiB"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.png(figure)


def test_the_total_has_parts_that_are_too_thin_to_see() -> None:
    figure = figures.saved_bytes_figure({"plain": {"mlp": 2000 * MIB, "norm": MIB}, "less": {"mlp": MIB, "norm": MIB}})
    assert len(figure.axes[0].containers) == 2  # of the MLP alone
    assert {text.get_text() for text in figure.axes[0].texts} == {"2,000.0", "2,001.0 MiB", "2 MiB"}


def test_in_another_unit() -> None:
    figure = figures.saved_bytes_figure({"plain": {"mlp": 3 << 29}}, unit="GiB")
    (axes,) = figure.axes
    assert [bar.get_width() for bars in axes.containers for bar in bars] == [1.5]
    assert {text.get_text() for text in axes.texts} == {"1.5", "1.5 GiB"}
    assert axes.get_xlabel() == "kept for backward, GiB"


def test_parts_keep_their_order_and_unknown_ones_come_last() -> None:
    tables = [{"other": 1, "new": 1, "norm": 0}, {"activation": 1, "mlp": 2}]
    assert ordered_parts(tables) == ["activation", "mlp", "other", "new"]


def test_background_stays_white_and_bytes_repeat() -> None:
    parts = {"plain": {"mlp": MIB}}
    image = figures.png(figures.saved_bytes_figure(parts))
    assert Image.open(io.BytesIO(image)).convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert figures.png(figures.saved_bytes_figure(parts)) == image


def test_every_part_of_a_measurement_has_a_colour() -> None:
    assert tuple(PART_COLOURS) == PARTS
