"""Markdown that all pages of results share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table. The first column is left-aligned, the others are right-aligned.

    >>> print(table(["model", "bytes"], [["GPT-2", "5"]]))
    | model | bytes |
    | :-- | --: |
    | GPT-2 | 5 |
    """
    titles = list(header)
    lines = [titles, [":--"] + ["--:"] * (len(titles) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def source_line(results: Mapping[str, Any]) -> str:
    """A sentence with the hardware, versions and command of results, from their ``environment`` and ``command``."""
    where = results["environment"]
    device = where["processor"] if where["device"] == "cpu" else where["device"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers") if name in where)
    return f"Measured on {device}, {where['threads']} threads, {versions}, by `{results['command']}`."
