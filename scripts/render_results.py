"""Render the README's tables, and the pages of docs that show results, from the committed results alone.

Usage: python scripts/render_results.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/ is beside this folder

from experiments.common.script import missing_packages_named

with missing_packages_named():
    from experiments import compatibility
    from experiments.benchmark import tables
    from experiments.benchmark.results import read_results
    from experiments.compare.report import SummaryRow, summary_rows
    from experiments.coverage import table as coverage
    from experiments.device import page as device
    from experiments.norm_errors import table as norm_errors
    from experiments.reproduce import page as reproduction
    from experiments.reproduce.budget import tables as budget
    from experiments.reproduce.lora import tables as lora

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
ADAPTERS_PAGE = ROOT / "docs" / "adapters.md"
BUDGET_PAGE = ROOT / "docs" / "memory-budget.md"
BENCHMARK_PAGE = ROOT / "docs" / "benchmark.md"
COMPATIBILITY_PAGE = ROOT / "docs" / "compatibility.md"
COVERAGE_PAGE = ROOT / "docs" / "coverage.md"
DEVICE_PAGE = ROOT / "docs" / "device.md"
NORMS_PAGE = ROOT / "docs" / "norms.md"
REPRODUCTION_PAGE = ROOT / "docs" / "reproduction.md"
RESULTS = ROOT / "results"
COMPATIBILITY = RESULTS / "compatibility.json"
COMPARISON = RESULTS / "small-models" / "comparison.json"
COVERAGE = RESULTS / "coverage.json"
REPRODUCTION = RESULTS / "reproduction"


def render() -> str:
    """The README with its results replaced."""
    text = _replaced(README.read_text(encoding="utf-8"), "small-models", _small_models())
    text = _replaced(text, "coverage", coverage.sentence(_read(COVERAGE)))
    text = _replaced(text, "reproduction", reproduction.summary(reproduction.read_parts(REPRODUCTION)))
    return _replaced(text, "benchmark", tables.section(benchmarks(RESULTS)))


def benchmarks(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of `scripts/benchmark.py` in a folder, by name."""
    return {path.name: read_results(path) for path in sorted(folder.glob("benchmark-*.json"))}


def _reproduction() -> str:
    parts = reproduction.read_parts(REPRODUCTION)
    images = {part: sorted(REPRODUCTION.glob(f"{part}-*.png")) for part in parts}
    links = {part: [path.relative_to(ROOT).as_posix() for path in paths] for part, paths in images.items()}
    from_page = {part: [f"../{link}" for link in of_part] for part, of_part in links.items()}
    return reproduction.page(parts, from_page, reproduction.read_minutes(REPRODUCTION))


def adapters_page() -> str:
    """The page about LoRA with its results replaced."""
    return _replaced(ADAPTERS_PAGE.read_text(encoding="utf-8"), "lora", lora.summary(_read(REPRODUCTION / "lora.json")))


def budget_page() -> str:
    """The page about memory budgets with its results replaced."""
    summary = budget.summary(_read(REPRODUCTION / "budget.json"))
    return _replaced(BUDGET_PAGE.read_text(encoding="utf-8"), "budget", summary)


def norms_page() -> str:
    """The page about norms with its results replaced."""
    table = norm_errors(_read(RESULTS / "norm-errors.json"))
    return _replaced(NORMS_PAGE.read_text(encoding="utf-8"), "norms", table)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _replaced(text: str, name: str, section: str) -> str:
    """The text, with everything between the markers of this name replaced."""
    markers = re.compile(rf"(<!-- begin {name}: .*? -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    replaced, count = markers.subn(lambda match: match.group(1) + section + match.group(2), text)
    if count != 1:
        raise SystemExit(f"a page must hold the markers of {name} once; found {count}")
    return replaced


def _small_models() -> str:
    comparison = _read(COMPARISON)
    rows = [
        "| small model, CPU, float32 | kept per MLP | kept for backward, whole model "
        "| largest loss difference at any step | spread between two seeds | step time |",
        "| :-- | --: | --: | --: | --: | --: |",
        *map(_row, summary_rows(comparison)),
    ]
    where = comparison["environment"]
    source = (
        f"Measured on {where['processor']}, {where['threads']} threads, torch {where['torch']}, transformers "
        f"{where['transformers']}, seeds {', '.join(map(str, comparison['models'][0]['seeds']))}, by "
        f"`{comparison['command']}`. Peak GPU memory and time: not yet measured on a GPU."
    )
    return "\n".join([*rows, "", source, ""])


def _row(row: SummaryRow) -> str:
    units = " → ".join(f"{row.intermediate_units[name]:.2f} I" for name in ("plain", "inverted"))
    saved = " → ".join(f"{row.saved_bytes[name] / 2**20:.1f}" for name in ("plain", "inverted"))
    change = row.saved_bytes["inverted"] / row.saved_bytes["plain"] - 1
    if "fused" in row.saved_bytes:
        units += f" (fused: {row.intermediate_units['fused']:.2f} I)"
        change_fused = row.saved_bytes["inverted"] / row.saved_bytes["fused"] - 1
        saved_change = f"{change:+.1%}; fused: {change_fused:+.1%}"
    else:
        saved_change = f"{change:+.1%}"
    first = ", first loss identical" if row.first_loss_identical else ""
    time = f"{row.step_time['ratio']:.2f}x" if row.step_time else "not measured"
    spread = f"{row.smallest_spread:.2g} to {row.largest_spread:.2g}" if row.largest_spread else "one seed"
    cells = (row.title, units, f"{saved} MiB ({saved_change})", f"{row.largest_difference:.2g}{first}", spread, time)
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a file would change")
    check = parser.parse_args().check
    rendered = {
        README: render(),
        ADAPTERS_PAGE: adapters_page(),
        BUDGET_PAGE: budget_page(),
        BENCHMARK_PAGE: tables.page(benchmarks(RESULTS)),
        COMPATIBILITY_PAGE: compatibility.page(_read(COMPATIBILITY)),
        COVERAGE_PAGE: coverage.page(_read(COVERAGE)),
        DEVICE_PAGE: device.page({path.name: _read(path) for path in sorted(RESULTS.glob("device-*.json"))}),
        NORMS_PAGE: norms_page(),
        REPRODUCTION_PAGE: _reproduction(),
    }
    changed = [path for path, text in rendered.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in changed:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} differs from the results: run scripts/render_results.py", file=sys.stderr)
        else:
            path.write_text(rendered[path], encoding="utf-8")
            print(f"wrote {name}")
    if not changed:
        print("README.md and the pages in docs are up to date")
    return 1 if check and changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
