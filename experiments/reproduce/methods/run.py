"""The part "methods" of the reproduction: the memory and gradient error of each method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from hf_invact.curves import CURVES
from hf_invact.display.figures import png
from hf_invact.memory import SavedActivations, intermediate_units
from hf_invact.patching import activation_sites

from ...benchmark.operators.implementations import Unavailable
from ...common.environment import describe_environment
from ...common.errors import ConfigError
from ...common.files import read_mapping, write_atomically, write_json
from ...finetuning.gradients import cosine_distance, gradient, relative_error
from ...methods.accuracy import derivative_error
from ...methods.catalogue import COMPARED
from ...methods.method import Method
from .models import CASES, QUICK_CASES, MethodCase, build_case
from .plots import figures

FILE = "methods.json"
SECTIONS = ("derivatives", "gradients")
SEED = 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CURVE_NAMES = ("gelu", "silu", "gelu_tanh")
DRAWS = {False: 1 << 21, True: 1 << 14}
DIGITS = 6


def run(folder: Path, quick: bool, console: Console, command: str) -> Path:
    """Measure what is missing in the folder's file, and draw the plots.

    Args:
        folder: created if it is missing.
        quick: use tiny models, to check that everything runs.
        command: the command line, for the file.

    Returns:
        The file, `FILE` in the folder.

    Raises:
        ConfigError: the file is damaged, or holds a full measurement that a quick one would replace.
    """
    cases = QUICK_CASES if quick else CASES
    results = _Results(folder / FILE, _header(cases, quick, command), console)
    for key, entry in _derivatives(results, DRAWS[quick]):
        console.print(f"derivative of {key['curve']}, {key['dtype']}, {key['method']}: {_summary(entry, 'rms')}")
        results.add("derivatives", {**key, **entry})
    for case in cases:
        for dtype in DTYPES:
            for key, entry in _gradients(results, case, dtype):
                console.print(f"{case.title}, {dtype}, {key['method']}: {_summary(entry, 'cosine_distance')}")
                results.add("gradients", {**key, **entry})
    results.finish()
    for name, figure in figures(results.content).items():
        write_atomically(folder / f"methods-{name}.png", png(figure))
    return results.path


class _Results:
    """The results file. It is complete after each entry, and a later run continues it."""

    def __init__(self, path: Path, header: dict[str, Any], console: Console) -> None:
        self.path = path
        before = read_mapping(path, {"settings": dict, "environment": dict, **dict.fromkeys(SECTIONS, list)})
        if before is not None and header["settings"]["quick"] and not before["settings"]["quick"]:
            raise ConfigError(f"{path} holds a full measurement, which --quick would replace; choose another folder")
        if before is not None and all(before[key] == header[key] for key in ("settings", "environment")):
            # What was not available before may be now.
            kept = {name: [entry for entry in before[name] if "unavailable" not in entry] for name in SECTIONS}
            self.content = {**before, **kept, "complete": False}
            count = sum(map(len, kept.values()))
            console.print(f"{path}: {count} entries with the same settings are kept")
        else:
            if before is not None:
                console.print(f"{path} has other settings or versions; starting over")
            self.content = {**header, "complete": False, **{name: [] for name in SECTIONS}}

    def __contains__(self, key: Mapping[str, Any]) -> bool:
        return any(key.items() <= entry.items() for name in SECTIONS for entry in self.content[name])

    def add(self, section: str, entry: dict[str, Any]) -> None:
        self.content[section].append(entry)
        self._write()

    def finish(self) -> None:
        self.content["complete"] = True
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.content)


def _header(cases: Sequence[MethodCase], quick: bool, command: str) -> dict[str, Any]:
    methods = {
        name: {"title": method.title, "source": method.source, "exact": method.is_exact}
        for name, method in COMPARED.items()
    }
    settings = {
        "quick": quick,
        "seed": SEED,
        "draws": DRAWS[quick],
        "dtypes": list(DTYPES),
        "curves": list(CURVE_NAMES),
        "methods": methods,
        "models": [case.settings() for case in cases],
    }
    return {"command": command, "environment": describe_environment(), "settings": settings}


def _derivatives(results: _Results, count: int) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    draws = torch.randn(count, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    for curve in map(CURVES.__getitem__, CURVE_NAMES):
        for dtype_name, dtype in DTYPES.items():
            for name, method in COMPARED.items():
                key = {"curve": curve.name, "dtype": dtype_name, "method": name}
                if key in results:
                    continue
                try:
                    with torch.random.fork_rng():
                        torch.manual_seed(SEED)
                        entry = derivative_error(method.function(curve), curve, draws.to(dtype))
                except Unavailable as error:
                    entry = {"unavailable": str(error)}
                yield key, {name: _plain(value) for name, value in entry.items()}


def _gradients(results: _Results, case: MethodCase, dtype: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """The missing entries of a model, which is built only if there are any."""
    keys = [{"model": case.name, "dtype": dtype, "method": name} for name in COMPARED]
    missing = [key for key in keys if key not in results]
    if not missing:
        return
    try:
        model, batch = build_case(case, dtype, SEED)
    except ConfigError as error:
        yield from ((key, {"unavailable": str(error)}) for key in missing)
        return
    plain = gradient(model, batch, SEED)
    for key in missing:
        try:
            entry = _measure(COMPARED[key["method"]], model, batch, plain)
        except Unavailable as error:
            entry = {"unavailable": str(error)}
        yield key, {name: _plain(value) for name, value in entry.items()}


def _measure(method: Method, model: PreTrainedModel, batch: Mapping[str, Any], plain: list[Tensor]) -> dict[str, Any]:
    sites = activation_sites(model)
    with method.applied(model):
        with torch.random.fork_rng(), SavedActivations(model, batch.values()) as saved:
            torch.manual_seed(SEED)
            loss = model(**batch).loss.item()
        found = gradient(model, batch, SEED)
    return {
        "loss": loss,
        "kept_bytes": saved.total_bytes,
        "intermediate_units": intermediate_units(saved, model, sites),
        "cosine_distance": cosine_distance(found, plain),
        "relative_error": relative_error(found, plain),
        "identical": all(map(torch.equal, found, plain)),
        "non_finite": sum(int((~part.isfinite()).sum()) for part in found) / sum(part.numel() for part in found),
    }


def _plain(value: Any) -> Any:
    """A number for JSON: rounded to the digits that mean something; None if it is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _summary(entry: Mapping[str, Any], key: str) -> str:
    if "unavailable" in entry:
        return f"not available: {entry['unavailable']}"
    if entry[key] is None:
        return f"not a number (non-finite: {entry['non_finite']:.2%})"
    return f"{key.replace('_', ' ')} {entry[key]:.3g}"
