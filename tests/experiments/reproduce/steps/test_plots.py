"""The figure of the step times."""

from __future__ import annotations

from experiments.reproduce.steps.plots import png_of, step_time_figure
from tests.experiments.reproduce.steps.results import made_up


def test_a_panel_for_each_measured_model() -> None:
    gpt2, llama = step_time_figure(made_up()).axes
    assert gpt2.get_title() == "GPT-2, small: plain 200 ms"
    assert llama.get_title() == "Llama, small: plain 1,234 ms"
    rows = [label.get_text() for label in gpt2.get_yticklabels()]
    assert rows == ["inverted (eager)", "PyTorch's fused GELU", "torch.compile", "torch.compile, inverted"]


def test_a_point_and_its_spread() -> None:
    gpt2, _ = step_time_figure(made_up()).axes
    row = [sorted(map(float, line.get_xdata())) for line in gpt2.lines if set(line.get_ydata()) == {0}]
    assert row == [[1.01, 1.05], [1.02, 1.04], [1.03]]


def test_what_is_not_measured_is_reported() -> None:
    _, llama = step_time_figure(made_up()).axes
    assert [text.get_text() for text in llama.texts] == ["not measured"] * 3


def test_no_models_at_all() -> None:
    results = made_up()
    results["entries"] = []
    assert png_of(results).startswith(b"\x89PNG")
