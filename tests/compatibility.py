"""Records what the tests of combinations measure in results/compatibility.json, the source of docs/compatibility.md."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

from hf_invact import PatchReport
from tests.models import MODEL_NAMES

PATH = Path(__file__).parents[1] / "results" / "compatibility.json"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "trl", "deepspeed", "liger-kernel")
GROUPS = ("Precision", "Adapters", "Checkpointing and offloading", "torch.compile", "Processes", "Other libraries")
ALLOWED_CHANGE = 0.01  # of the saved bytes: machines and versions differ in what attention keeps

Cells: TypeAlias = dict[str, dict[str, Any]]


class Matrix:
    """The table of combinations.

    Args:
        path: the file that is committed.
        is_written: whether what is recorded replaces what the file says; else it has to agree.
    """

    def __init__(self, path: Path = PATH, *, is_written: bool = False) -> None:
        self._path, self._is_written = path, is_written
        self._content: dict[str, Any] = {"versions": {}, "groups": {}}
        if path.exists():
            self._content = json.loads(path.read_text(encoding="utf-8"))

    @property
    def groups(self) -> dict[str, dict[str, Cells]]:
        """The cells by group, row and column."""
        groups: dict[str, dict[str, Cells]] = self._content["groups"]
        return groups

    def record(
        self,
        group: str,
        row: str,
        column: str,
        *,
        plain_bytes: int | None = None,
        patched_bytes: int | None = None,
        plan: str = "",
        adapters: str = "",
        norms: str = "",
        note: str = "",
    ) -> None:
        """Enter a cell, or check that it is the one that is committed.

        Args:
            group: heading of the table that holds the row, one of `GROUPS`.
            row: the combination.
            column: the model, one of `tests.models.MODEL_NAMES`.
            plain_bytes, patched_bytes: kept for the backward pass without and with the flag; None where it is refused.
            plan: of its MLPs (see `InvActConfig.plan`), or "left alone", or "refused".
            adapters, norms: how many of its layers with adapters and of its norms are patched, as `patched_sites` has
                it.
            note: what a reader has to know about the cell, in a sentence.

        Raises:
            AssertionError: the committed cell says something else.
        """
        assert group in GROUPS, f"{group!r} is none of {GROUPS}"
        assert column in MODEL_NAMES, f"{column!r} is none of {MODEL_NAMES}"
        sizes = {"plain_bytes": plain_bytes, "patched_bytes": patched_bytes}
        said = {"plan": plan, "adapters": adapters, "norms": norms, "note": note}
        if self._is_written:
            self.groups.setdefault(group, {}).setdefault(row, {})[column] = {**sizes, **said}
            return
        committed = self.groups.get(group, {}).get(row, {}).get(column)
        again = f"{self._path.name}: {group}, {row}, {column}; run the test with --write-results"
        assert committed is not None, f"not in {again}"
        assert said == {key: committed[key] for key in said}, f"differs from {again}"
        assert abs(_change(sizes) - _change(committed)) <= ALLOWED_CHANGE, f"differs from {again}"

    def write(self) -> None:
        """Write the file, if asked to. Rows that no test has recorded stay: delete the file to start from scratch."""
        if not self._is_written:
            return
        for group in [group for group in GROUPS if group in self.groups]:
            rows = self.groups.pop(group)  # and back, at the end
            self.groups[group] = {row: _in_order(rows[row]) for row in sorted(rows, key=str.casefold)}
        for package in PACKAGES:
            try:
                self._content["versions"][package] = version(package)
            except PackageNotFoundError:  # its rows are of an earlier run
                continue
        self._path.write_text(json.dumps(self._content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def patched_sites(report: PatchReport | None) -> dict[str, str]:
    """What a cell says of what is patched: ``plan`` of the MLPs, ``adapters`` and ``norms``, e.g. ``"12/14"``."""
    assert report is not None
    # BERT's head has an activation of its own.
    plans = {site.plan for site in report.sites if site.kind == "activation" and ".predictions." not in site.name}
    (plan,) = plans or {""}
    return {
        "plan": "left alone" if plan is None else plan,
        "adapters": _patched(report, "adapter"),
        "norms": _patched(report, "norm"),
    }


def _patched(report: PatchReport, kind: str) -> str:
    sites = [site for site in report.sites if site.kind == kind]
    return f"{sum(site.is_patched for site in sites)}/{len(sites)}" if sites else ""


def _in_order(cells: Cells) -> Cells:
    return {column: cells[column] for column in MODEL_NAMES if column in cells}


def _change(cell: dict[str, Any]) -> float:
    if cell["plain_bytes"] is None:
        return 0.0
    change: float = cell["patched_bytes"] / cell["plain_bytes"] - 1
    return change
