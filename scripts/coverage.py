"""Patch a small model of every model type of the installed Transformers, and compare it with the unpatched one.

Writes results/coverage.json; scripts/render_results.py makes docs/coverage.md of it. Needs no network and no GPU.

Usage: python scripts/coverage.py [MODEL_TYPE ...]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

# No small model is worth a question to the hub; set before anything of Hugging Face is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ lies beside this folder

from experiments.common.environment import describe_environment
from experiments.common.files import write_json
from experiments.coverage.check import SEED
from experiments.coverage.processes import check_all
from experiments.coverage.shrink import MODEL_TYPES

TARGET = Path(__file__).parents[1] / "results" / "coverage.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE", help="default: all, which are written")
    parser.add_argument("--seconds", type=float, default=120.0, help="that each may take (default: 120)")
    parser.add_argument("--jobs", type=int, help="how many run at once (default: one for each core)")
    options = parser.parse_args()
    for name in options.model_types:
        if name not in MODEL_TYPES:
            parser.error(f"the installed Transformers knows no model type {name!r}")
    if not 0 < options.seconds < math.inf:
        parser.error(f"--seconds must be a number above 0, got {options.seconds}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    found = []
    for coverage in check_all(options.model_types or MODEL_TYPES, seconds=options.seconds, jobs=options.jobs):
        found.append(coverage)
        print(coverage, flush=True)
    broken = [coverage.model_type for coverage in found if coverage.error]
    if not options.model_types:
        found.sort(key=lambda coverage: coverage.model_type)
        results = {
            "command": "python scripts/coverage.py",
            "environment": describe_environment(),
            "seed": SEED,
            "models": [coverage.as_json() for coverage in found],
        }
        write_json(TARGET, results)
    if broken:
        print(f"cannot be run once patched: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
