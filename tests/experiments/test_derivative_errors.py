"""The committed errors, their figures, and the page that is rendered from them."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.activations import ACT2FN

from experiments.derivative_errors import DRAWS, SEED, figure, measure_derivative
from hf_invact.curves import CURVES, GELU
from hf_invact.display.figures import png
from tests.helpers import FITTED, normal

ROOT = Path(__file__).parents[2]
RENDER = ROOT / "scripts" / "render_activations.py"
RESULTS = json.loads((ROOT / "results" / "derivative-errors.json").read_text(encoding="utf-8"))


def test_no_error_is_below_its_floor() -> None:
    for of_dtype in RESULTS["curves"].values():
        for dtype in ("bf16", "fp16"):
            assert of_dtype[dtype]["max"] >= of_dtype[dtype]["floor_max"]
            assert of_dtype[dtype]["rms"] >= 0.99 * of_dtype[dtype]["floor_rms"] - 1e-5


def test_committed_errors_are_what_is_measured() -> None:
    assert (RESULTS["draws"], RESULTS["seed"]) == (DRAWS, SEED)
    assert set(RESULTS["curves"]) == set(CURVES)
    for curve in (*FITTED, CURVES["hardswish"], CURVES["elu"]):
        again, committed = (
            measure_derivative(curve, normal(200_000, dtype=torch.float64)),
            RESULTS["curves"][curve.name],
        )
        for dtype in ("bf16", "fp16"):
            assert again[dtype]["rms"] == pytest.approx(committed[dtype]["rms"], rel=0.05)
            assert again[dtype]["max"] == pytest.approx(committed[dtype]["max"], rel=0.02)


def test_readme_rounds_the_measured_errors() -> None:
    sentence = re.search(
        r"about (\S+) in bfloat16, .*? (\S+) in float16, (\S+) in float32 \(GELU on a CPU without AVX-512: (\S+);",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert sentence is not None
    narrow = json.loads((ROOT / "results" / "derivative-errors-avx2.json").read_text(encoding="utf-8"))
    curves = RESULTS["curves"]
    measured = [max(curves[name][dtype]["rms"] for name in ("gelu", "silu")) for dtype in ("bf16", "fp16", "fp32")]
    measured.append(narrow["curves"]["gelu"]["fp32"]["rms"])
    assert [float(number) for number in sentence.groups()] == pytest.approx(measured, rel=0.25)


def test_figures_are_drawn_for_the_fitted_curves_and_small() -> None:
    content = png(figure(GELU, "gelu"))
    assert content.startswith(b"\x89PNG")
    assert len(content) < 80_000
    expected = {f"derivative-error-{curve.name}.png" for curve in FITTED}
    assert {path.name for path in (ROOT / "docs" / "figures").glob("derivative-error-*.png")} == expected


def test_page_is_what_the_script_renders() -> None:
    script = SimpleNamespace(**runpy.run_path(str(RENDER)))
    assert script.render() == script.TARGET.read_text(encoding="utf-8"), "run scripts/render_activations.py"


def test_page_names_every_activation_of_transformers_once() -> None:
    table = (ROOT / "docs" / "activations.md").read_text(encoding="utf-8").partition("## How near")[0]
    names = re.findall(r"^\| (\w+) \| (?:fitted|exact formula|learned|left alone) \|", table, re.MULTILINE)
    assert names == list(ACT2FN), (
        f"Transformers' names differ by {sorted(set(names) ^ set(ACT2FN))}: give the new ones a curve or a reason in "
        "hf_invact/patching/activations.py, and run scripts/render_activations.py"
    )


@pytest.mark.parametrize("is_current", [True, False], ids=["current", "outdated"])
def test_check_tells_whether_the_page_would_change(
    is_current: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SimpleNamespace(**runpy.run_path(str(RENDER)))
    target = tmp_path / "activations.md"
    target.write_text(script.render() if is_current else "old", encoding="utf-8")
    before = target.read_text(encoding="utf-8")
    monkeypatch.setitem(script.main.__globals__, "TARGET", target)

    monkeypatch.setattr("sys.argv", [RENDER.name, "--check"])
    assert script.main() == (0 if is_current else 1)
    assert target.read_text(encoding="utf-8") == before

    monkeypatch.setattr("sys.argv", [RENDER.name])
    assert script.main() == 0
    assert target.read_text(encoding="utf-8") == script.render()


def test_a_new_name_of_transformers_is_not_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    script = SimpleNamespace(**runpy.run_path(str(RENDER)))
    monkeypatch.setitem(script.render.__globals__, "ACT2FN", {"softsign": torch.nn.Softsign()})
    with pytest.raises(SystemExit, match="softsign: give it a curve or a reason"):
        script.render()
