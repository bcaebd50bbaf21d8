"""The command line of the coverage: checks model types, and writes the results if it checks all of them."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.environment import describe_environment
from ..common.files import write_json
from .check import SEED
from .processes import check_all
from .shrink import MODEL_TYPES

COMMAND = "python scripts/coverage.py"
TARGET = Path(__file__).parents[2] / "results" / "coverage.json"


def main(argv: Sequence[str]) -> int:
    """The script: exit code 2 for arguments that cannot be used; 1 if a model fails once it is patched."""
    options = _parse(argv)
    found = []
    for coverage in check_all(options.model_types or MODEL_TYPES, seconds=options.seconds, jobs=options.jobs):
        found.append(coverage)
        print(coverage, flush=True)
    if not options.model_types:
        found.sort(key=lambda coverage: coverage.model_type)
        results = {
            "command": COMMAND,
            "environment": describe_environment(),
            "seed": SEED,
            "models": [coverage.as_json() for coverage in found],
        }
        write_json(TARGET, results)
    broken = [coverage.model_type for coverage in found if coverage.error]
    if broken:
        print(f"these fail once they are patched: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/coverage.py",
        description="Patch a small model of every model type of the installed Transformers, and compare it with the "
        "unpatched one.",
    )
    parser.add_argument(
        "model_types", nargs="*", metavar="MODEL_TYPE", help="default: all; only then are the results written"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="limit for each model type (default: 120)")
    parser.add_argument("--jobs", type=int, help="how many run at once (default: one for each core)")
    options = parser.parse_args(argv)
    for name in options.model_types:
        if name not in MODEL_TYPES:
            parser.error(f"the installed Transformers has no model type {name!r}")
    if not 0 < options.seconds < math.inf:
        parser.error(f"--seconds must be a number above 0, got {options.seconds}")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options
