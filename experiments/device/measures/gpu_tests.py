"""The tests marked ``gpu``, file by file, so that a package that one file needs costs none of the others."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..case import Case, Conditions

ROOT = Path(__file__).parents[3]
MARK = "mark.gpu"
LINES = 30
NO_TESTS = 5  # pytest's exit code
_MISSING = re.compile(r"ModuleNotFoundError: No module named '(?!hf_invact|experiments|tests)(\w+)")
_OUTCOME = re.compile(r" (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*\[ *\d+%\]$", re.MULTILINE)


def cases(kind: str) -> list[Case]:
    """One for each file that has such a test."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    return [Case(path.relative_to(ROOT).as_posix(), partial(measure, path)) for path in files]


def measure(path: Path, conditions: Conditions) -> dict[str, Any]:
    """How many passed, failed and were skipped, and the last lines of what pytest says."""
    if find_spec("pytest") is None:
        return {"unavailable": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--color=no", "-p", "no:cacheprovider", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    is_cut = False
    try:
        output, _ = process.communicate(timeout=max(0.0, conditions.deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        is_cut = True
        process.kill()
        output, _ = process.communicate()
    counts = Counter(match.lower() for match in _OUTCOME.findall(output))
    lines = [line for line in output.splitlines() if line.strip()][-LINES:]
    found: dict[str, Any] = {"counts": dict(counts), "lines": lines}
    if is_cut:
        found["cut"] = f"stopped after {sum(counts.values())} tests, since its time was over"
    elif process.returncode == NO_TESTS:
        found["unavailable"] = "no test of this file is for this machine"
    elif not counts and (missing := _MISSING.search(output)):
        found["unavailable"] = f"{missing[1]} is not installed"
    elif process.returncode:
        found["failed"] = lines[-1] if lines else f"pytest ended with exit code {process.returncode}"
    elif not counts["passed"]:
        found["unavailable"] = "all were skipped"
    return found
