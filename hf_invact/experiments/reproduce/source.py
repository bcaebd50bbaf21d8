"""The line below a table that says where its numbers come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def source_line(results: Mapping[str, Any]) -> str:
    """Hardware, versions and command of results."""
    where = results["environment"]
    device = where["processor"] if where["device"] == "cpu" else where["device"]
    versions = ", ".join(f"{name} {where[name]}" for name in ("torch", "transformers") if name in where)
    return f"Measured on {device}, {where['threads']} threads, {versions}, by `{results['command']}`."
