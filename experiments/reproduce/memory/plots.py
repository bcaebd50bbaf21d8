"""The figures of the part "memory": a bar for each variant of a case, by part of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_invact.display.figures import png, saved_bytes_figure
from hf_invact.display.sizes import common_unit

from ...common.files import write_atomically


def save_figures(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw ``memory-<case>.png`` for each case."""
    paths = []
    for key in dict.fromkeys(entry["case"] for entry in results["entries"]):
        entries = [entry for entry in results["entries"] if entry["case"] == key and entry["parts"]]
        if not entries:
            continue
        unit = common_unit(max(entry["kept_bytes"] for entry in entries))
        bars = {entry["variant"]: entry["parts"] for entry in entries}
        figure = saved_bytes_figure(bars, unit)
        figure.suptitle(f"{entries[0]['model']}, {entries[0]['setting']}", x=0.01, ha="left", fontsize=11)
        paths.append(folder / f"memory-{key}.png")
        write_atomically(paths[-1], png(figure))
    return paths
