"""The fitted formulas against the exact derivative, evaluated without the package's own code."""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hf_invact.curves import CURVES, Curve, Formula, Ratio
from hf_invact.curves import coefficients as generated
from tests.helpers import each_half_dtype, exact_derivative

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "fit_curves.py"
GRID = 200_001

BARS = {"fine": 1e-6, "coarse": 5e-5}

each_formula = pytest.mark.parametrize("precision", BARS)
each_fit = pytest.mark.parametrize("curve", [CURVES[name] for name in generated.FITS], ids=lambda curve: curve.name)


def horner(coefficients: Sequence[float], variable: NDArray[Any]) -> NDArray[Any]:
    total = np.zeros_like(variable)
    for coefficient in reversed(coefficients):
        total = total * variable + variable.dtype.type(coefficient)
    return total


def value(ratio: Ratio, root: NDArray[Any]) -> NDArray[Any]:
    u = np.minimum(root, root.dtype.type(ratio.end)) - root.dtype.type(ratio.center)
    return horner(ratio.numerator, u) / horner(ratio.denominator, u)


def errors(curve: Curve, formula: Formula, dtype: type[np.floating[Any]]) -> tuple[float, float]:
    """The largest error right and left of the minimum, on a dense grid of outputs extending past both ends of the fit.

    The root is computed in float64 and rounded to the dtype, in which the sums are evaluated.
    """
    # Squared shares are dense next to the minimum, where the output hardly changes with the input.
    share = torch.linspace(1e-4, 1, GRID, dtype=torch.float64) ** 2
    right_x, left_x = curve.x_min + 60 * share, curve.x_min - 60 * share
    right_y, left_y = curve.forward(right_x).numpy(), curve.forward(left_x).numpy()
    right_root, left_root = (np.sqrt(np.maximum(y - curve.inverse.y_min, 0)).astype(dtype) for y in (right_y, left_y))
    right = value(formula.right, right_root) - exact_derivative(curve, right_x).numpy()
    left = left_y.astype(dtype) * value(formula.left, left_root) - exact_derivative(curve, left_x).numpy()
    return float(np.abs(right).max()), float(np.abs(left).max())


@each_formula
@each_fit
def test_recorded_errors_are_small(curve: Curve, precision: str) -> None:
    formula, bar = getattr(curve.inverse, precision), BARS[precision]
    assert 0 < formula.right.error < bar
    assert 0 < formula.left.error < bar
    assert formula.error == max(formula.right.error, formula.left.error)


@each_formula
@each_fit
def test_recorded_errors_are_what_the_formulas_have(curve: Curve, precision: str) -> None:
    formula = getattr(curve.inverse, precision)
    right, left = errors(curve, formula, np.float64)  # beyond the ends of the fit it may be a little larger
    assert right == pytest.approx(formula.right.error, rel=0.2)
    assert left == pytest.approx(formula.left.error, rel=0.2)


@each_formula
@each_fit
def test_float32_sums_lose_little(curve: Curve, precision: str) -> None:
    formula = getattr(curve.inverse, precision)
    right, left = errors(curve, formula, np.float32)
    assert right < formula.right.error + 1.5e-6
    assert left < formula.left.error + 1.5e-6


@each_formula
@each_fit
def test_denominators_stay_away_from_zero(curve: Curve, precision: str) -> None:
    formula = getattr(curve.inverse, precision)
    right = np.linspace(0, formula.right.end, GRID) - formula.right.center
    assert horner(formula.right.denominator, right).min() > 0.01
    # Left of the minimum a root can be rounded past the last one.
    left = np.linspace(0, math.sqrt(-curve.inverse.y_min) * (1 + 1e-6), GRID) - formula.left.center
    assert horner(formula.left.denominator, left).min() > 0.01


@each_half_dtype
@each_fit
def test_half_precision_takes_the_coarse_formula(curve: Curve, dtype: torch.dtype) -> None:
    assert curve.inverse.formula(dtype) is curve.inverse.coarse
    assert curve.inverse.formula(torch.float32) is curve.inverse.formula(torch.float64) is curve.inverse.fine


def test_file_is_what_the_script_writes_for_these_numbers() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["render"](generated.FITS) == Path(generated.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["", None], ids=["another-file", "same-file"])
def test_check_tells_whether_the_file_would_change(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    target = tmp_path / "coefficients.py"
    target.write_text(script.render(generated.FITS) if content is None else content, encoding="utf-8")
    names = {problem: name for name, problem in script.PROBLEMS.items()}
    monkeypatch.setitem(script.main.__globals__, "TARGET", target)
    monkeypatch.setitem(script.main.__globals__, "fit", lambda problem: generated.FITS[names[problem]])

    before = target.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--check"])
    assert script.main() == (0 if content is None else 1)
    assert target.read_text(encoding="utf-8") == before

    monkeypatch.setattr(sys, "argv", [SCRIPT.name])
    assert script.main() == 0
    assert target.read_text(encoding="utf-8") == script.render(generated.FITS)


@pytest.mark.slow
def test_fitting_again_gives_the_same_file() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--check"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
