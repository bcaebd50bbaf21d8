"""Measure the error of every derivative, and draw those of the fitted ones.

Writes results/derivative-errors.json and docs/figures/derivative-error-*.png; with --output, the numbers alone.

Usage: python scripts/measure_errors.py
       ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python scripts/measure_errors.py \\
           --output results/derivative-errors-avx2.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import missing_packages_named

with missing_packages_named():
    import torch

    from experiments.common.environment import describe_environment
    from experiments.derivative_errors import DRAWS, SEED, figure, measure_derivative
    from hf_invact.curves import CURVES, Curve, Fit
    from hf_invact.display.figures import png

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "results" / "derivative-errors.json"
FIGURES = ROOT / "docs" / "figures"
# The vector instructions that PyTorch, and oneDNN for its gelu, may use.
INSTRUCTIONS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")


def is_drawn(curve: Curve) -> bool:
    return isinstance(curve.inverse, Fit) and curve.limits is None


def command(target: Path) -> str:
    limits = [f"{name}={os.environ[name]}" for name in INSTRUCTIONS if name in os.environ]
    output = [] if target == TARGET else [f"--output {target}"]
    return " ".join([*limits, "python scripts/measure_errors.py", *output])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=TARGET)
    target = parser.parse_args().output
    draws = torch.randn(DRAWS, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    results = {
        "command": command(target),
        "environment": describe_environment(),
        "draws": DRAWS,
        "seed": SEED,
        "curves": {name: measure_derivative(curve, draws) for name, curve in CURVES.items()},
    }
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {target}")
    if target == TARGET:
        draw()


def draw() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, curve in CURVES.items():
        if is_drawn(curve):
            path = FIGURES / f"derivative-error-{name}.png"
            path.write_bytes(png(figure(curve, f"{name} in bfloat16")))
    print(f"wrote {FIGURES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
