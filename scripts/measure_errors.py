"""Measure the error of every derivative, and draw those of the fitted ones.

Writes results/derivative-errors.json and docs/figures/derivative-error-*.png.

Usage: python scripts/measure_errors.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from hf_invact.curves import CURVES, Curve, Fit
from hf_invact.experiments.derivative_errors import DRAWS, SEED, figure, measure
from hf_invact.experiments.environment import describe_environment
from hf_invact.memory.plots import png

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "results" / "derivative-errors.json"
FIGURES = ROOT / "docs" / "figures"


def is_drawn(curve: Curve) -> bool:
    return isinstance(curve.inverse, Fit) and curve.limits is None


def main() -> None:
    draws = torch.randn(DRAWS, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    results = {
        "command": "python scripts/measure_errors.py",
        "environment": describe_environment(),
        "draws": DRAWS,
        "seed": SEED,
        "curves": {name: measure(curve, draws) for name, curve in CURVES.items()},
    }
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    FIGURES.mkdir(exist_ok=True)
    for name, curve in CURVES.items():
        if is_drawn(curve):
            path = FIGURES / f"derivative-error-{name}.png"
            path.write_bytes(png(figure(curve, f"{name} in bfloat16")))
    print(f"wrote {TARGET.relative_to(ROOT)} and {FIGURES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
