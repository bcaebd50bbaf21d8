"""The figure of the variants."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_invact import PlanningError
from hf_invact.display import figures
from hf_invact.planning import check_plot, compare_memory, save_plot
from tests.planning.small import small_config


def test_draws_a_bar_for_each_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare_memory(small_config("gpt2"), 16, 64)
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "png", lambda figure: drawn.append(figure) or b"png")
    save_plot(comparison, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes() == b"png"
    ((axes,),) = (figure.axes for figure in drawn)
    assert [label.get_text() for label in axes.get_yticklabels()] == [v.name for v in comparison.variants]
    ends = [0.0] * 5
    for bar in axes.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends[row], bar.get_x() + bar.get_width())
    assert ends == pytest.approx([variant.saved_bytes / 2**20 for variant in comparison.variants])
    assert "MiB" in axes.get_xlabel()
    assert sum(text.get_text().endswith("MiB") for text in axes.texts) == 5


def test_is_a_png_whose_legend_is_not_cut_off(tmp_path: Path) -> None:
    save_plot(compare_memory(small_config("bert"), 16, 64), tmp_path / "plan.png")
    pixels = Image.open(tmp_path / "plan.png").convert("L")
    right_edge = pixels.crop((pixels.width - 3, 0, pixels.width, pixels.height))
    assert right_edge.getextrema() == (255, 255)


@pytest.mark.parametrize("name", ["plan.pdf", "nowhere/plan.png", "folder.png"])
def test_a_file_that_cannot_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PlanningError, match=r"\.png"):
        check_plot(tmp_path / name)


def test_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlanningError, match="pip install matplotlib"):
        check_plot(tmp_path / "plan.png")
