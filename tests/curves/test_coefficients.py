"""The fitted formulas against the exact derivative, evaluated here without the package's own code for it."""

from __future__ import annotations

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

from hf_invact.curves import CURVES, Curve
from hf_invact.curves import coefficients as generated
from tests.helpers import exact_derivative

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "fit_curves.py"
GRID = 200_001

each_fit = pytest.mark.parametrize("curve", [CURVES[name] for name in generated.FITS], ids=lambda curve: curve.name)


def horner(coefficients: Sequence[float], variable: NDArray[Any]) -> NDArray[Any]:
    total = np.zeros_like(variable)
    for coefficient in reversed(coefficients):
        total = total * variable + variable.dtype.type(coefficient)
    return total


def right_of_minimum(curve: Curve, s: NDArray[Any]) -> NDArray[Any]:
    fit = curve.inverse
    u = np.minimum(s, s.dtype.type(fit.right_end)) - s.dtype.type(fit.center)
    return horner(fit.right_numerator, u) / horner(fit.right_denominator, u)


def left_of_minimum(curve: Curve, y: NDArray[Any], r: NDArray[Any]) -> NDArray[Any]:
    return y * horner(curve.inverse.left, np.minimum(r, r.dtype.type(curve.inverse.left_end)))


def errors(curve: Curve, dtype: type[np.floating[Any]]) -> tuple[float, float]:
    """Largest error right and left of the minimum, on a dense grid of outputs that goes past both ends of the fit.

    The formulas' variables are computed in float64 and rounded to the dtype, in which the sums are evaluated.
    """
    # Squared shares crowd next to the minimum, where the output hardly changes with the input.
    share = torch.linspace(1e-4, 1, GRID, dtype=torch.float64) ** 2
    right_x, left_x = curve.x_min + 60 * share, curve.x_min - 60 * share
    right_y, left_y = curve.forward(right_x).numpy(), curve.forward(left_x).numpy()
    s = np.sqrt(np.maximum(right_y - curve.inverse.y_min, 0))
    with np.errstate(divide="ignore"):  # far on the left the output underflows to 0
        r = np.sqrt(np.maximum(curve.inverse.y_min * np.log(left_y / curve.inverse.y_min), 0))
    right = right_of_minimum(curve, s.astype(dtype)) - exact_derivative(curve, right_x).numpy()
    left = left_of_minimum(curve, left_y.astype(dtype), r.astype(dtype)) - exact_derivative(curve, left_x).numpy()
    return float(np.abs(right).max()), float(np.abs(left).max())


@each_fit
def test_recorded_errors_are_below_1e_6(curve: Curve) -> None:
    assert 0 < curve.inverse.error.right < 1e-6
    assert 0 < curve.inverse.error.left < 1e-6


@each_fit
def test_recorded_errors_are_what_the_formulas_have(curve: Curve) -> None:
    right, left = errors(curve, np.float64)  # beyond the ends of the fit it may be a little larger
    assert right == pytest.approx(curve.inverse.error.right, rel=0.2)
    assert left == pytest.approx(curve.inverse.error.left, rel=0.2)


@each_fit
def test_float32_sums_lose_little(curve: Curve) -> None:
    right, left = errors(curve, np.float32)
    assert right < 2e-6
    assert left < 2e-6


@each_fit
def test_denominator_stays_away_from_zero(curve: Curve) -> None:
    u = np.linspace(0, curve.inverse.right_end, GRID) - curve.inverse.center
    assert horner(curve.inverse.right_denominator, u).min() > 0.01


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
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
