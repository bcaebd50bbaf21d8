"""Part "memory" of the reproduction: what models keep for the backward pass, as published and as trained."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from hf_invact.display.sizes import size

from ...common.environment import describe_environment
from ...common.errors import first_line
from ...common.files import read_mapping, write_json
from .cases import CASES, MEASURED_ON_GPU, MemoryCase, MemoryVariant
from .counting import LORA_RANK, SAMPLED_LAYERS, count
from .measured import measure_kept
from .plots import save_figures

FORMAT = 1
FILE = "memory.json"
# The parts of the environment that a count depends on. With others, everything is counted again.
_MUST_MATCH = ("torch", "transformers", "peft", "hf_invact", "device")
NOT_MEASURED = {"measured_bytes": None, "measured_note": "not yet measured on a GPU"}

_Key = tuple[str, str]


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Count (and measure if there is a GPU) what is missing in ``folder/memory.json``, and draw everything.

    Args:
        folder: created if it is missing.
        quick: use narrow models with few layers.
        console: for the progress.
        command: the command line, for the file.

    Returns:
        The file of the results.

    Raises:
        ConfigError: the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    cases = CASES["quick" if quick else "full"]
    header = {
        "command": command,
        "environment": describe_environment(),
        "settings": {
            "format": FORMAT,
            "quick": quick,
            "seed": 0,
            "lora_rank": LORA_RANK,
            "sampled_layers": list(SAMPLED_LAYERS),
        },
    }
    wanted = [(case, variant) for case in cases for variant in case.variants]
    entries = _finished(path, header, wanted, console)
    for number, (case, variant) in enumerate(wanted, 1):
        title = f"memory {number} of {len(wanted)}: {case.model}, {case.setting}, {variant.name}"
        key = case.key, variant.name
        if key in entries:
            console.print(f"{title}: kept", highlight=False)
            continue
        entries[key] = _entry(case, variant)
        write_json(path, {**header, "entries": list(entries.values())})  # including those of earlier runs
        console.print(f"{title}: {_line(entries[key])}", highlight=False)
    results = {**header, "entries": [entries[case.key, variant.name] for case, variant in wanted]}
    write_json(path, results)
    save_figures(results, folder)
    return path


def _finished(
    path: Path, header: Mapping[str, Any], wanted: list[tuple[MemoryCase, MemoryVariant]], console: Console
) -> dict[_Key, dict[str, Any]]:
    """The entries of an earlier run that are still valid."""
    before = read_mapping(path, {"settings": dict, "environment": dict, "entries": list})
    if before is None:
        return {}
    same = before["settings"] == header["settings"] and all(
        before["environment"].get(name) == header["environment"].get(name) for name in _MUST_MATCH
    )
    if not same:
        console.print(f"{path} was made with other settings or versions: starting over", highlight=False)
        return {}
    inputs = {(case.key, variant.name): case.inputs(variant) for case, variant in wanted}
    found = {(entry["case"], entry["variant"]): entry for entry in before["entries"]}
    return {
        key: entry for key, entry in found.items() if entry["inputs"] == inputs.get(key) and entry["reason"] is None
    }


def _entry(case: MemoryCase, variant: MemoryVariant) -> dict[str, Any]:
    """Count a variant. The entry has a reason instead of numbers if a compiled variant cannot be counted."""
    began = time.monotonic()
    entry: dict[str, Any] = {
        "case": case.key,
        "model": case.model,
        "setting": case.setting,
        "variant": variant.name,
        "inputs": case.inputs(variant),
        "published": case.published and {**case.inputs(variant)["published"], "change": case.published.change},
        "reason": None,
    }
    try:
        entry |= count(case, variant).plain()
    except Exception as error:  # the parts of the compiler are not public, and fail in many ways
        if not variant.compiled:
            raise
        entry |= {
            "kept_bytes": None,
            "parts": {},
            "reason": f"not counted: {type(error).__name__}: {first_line(error)}",
        }
    if torch.cuda.is_available() and variant in MEASURED_ON_GPU:
        entry |= measure_kept(case, variant, torch.device("cuda"))
    else:
        entry |= NOT_MEASURED
    return {**entry, "seconds": round(time.monotonic() - began, 1)}


def _line(entry: Mapping[str, Any]) -> str:
    if entry["kept_bytes"] is None:
        return str(entry["reason"])
    measured = "" if entry["measured_bytes"] is None else f", measured {size(entry['measured_bytes'])}"
    return f"{size(entry['kept_bytes'])}{measured} ({entry['seconds']:.1f} s)"
