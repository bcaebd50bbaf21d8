"""Measure how far the gradients of norms are from exact ones, beside PyTorch's own.

Writes results/norm-errors.json, from which scripts/render_results.py makes a table of docs/norms.md. Needs the packages
of `make weights`.

Usage: python scripts/measure_norms.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import missing_packages_named

with missing_packages_named():
    from experiments.common.environment import describe_environment
    from experiments.norm_errors import DRAWS, ROWS, SEED, lost, measure, pretrained, synthetic

TARGET = Path(__file__).parents[1] / "results" / "norm-errors.json"


def main() -> None:
    norms = [
        {"form": each.form.name, "weights": each.title, "norms": len(each.norms), "lost": lost(each)}
        | {"errors": measure(each)}
        for each in (*pretrained(), *synthetic())
    ]
    measured = {"rows": ROWS, "draws": DRAWS, "seed": SEED, "norms": norms}
    results = {"command": "python scripts/measure_norms.py", "environment": describe_environment(), **measured}
    TARGET.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
