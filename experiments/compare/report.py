"""The report of a comparison: a self-contained HTML file, the same as Markdown, and a table for the console."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from rich.table import Table
from rich.text import Text

from hf_invact.display.figures import png, saved_bytes_figure
from hf_invact.display.parts import ordered_parts

from ..common.files import write_atomically
from . import plots
from .comparison import diverged

ABSENT = "n/a"
TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class SummaryRow:
    """A model's row of the summary: plain numbers; None, or a missing variant, for what was not measured.

    The mappings go from variant ("plain", "fused", "inverted") to a value of its run with the model's first seed.
    """

    title: str
    first_loss_identical: bool | None
    first_loss_difference: float | None
    largest_difference: float | None
    smallest_spread: float | None
    largest_spread: float | None
    final_loss: Mapping[str, float]
    saved_bytes: Mapping[str, int]
    intermediate_units: Mapping[str, float]
    peak_bytes: Mapping[str, int]
    step_time: Mapping[str, float] | None  # ratio, low, high, pairs


class Grid(NamedTuple):
    """A table of texts. The first column is left-aligned, the others hold numbers."""

    header: list[str]
    rows: list[list[str]]


class Image(NamedTuple):
    """A figure: its file name, its alternative text, and its PNG."""

    name: str
    alt: str
    content: bytes


def summary_rows(comparison: dict[str, Any]) -> list[SummaryRow]:
    """One row for each model of a comparison, in its order."""
    return [_summary_row(model) for model in comparison["models"]]


def summary_table(comparison: dict[str, Any]) -> Table:
    """The summary for the console, with a column for each model, since rows would be too wide."""
    grid = _summary_grid(summary_rows(comparison))
    table = Table(title=Text(comparison["title"]))
    titles, *measures = zip(grid.header, *grid.rows, strict=True)
    for index, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if index else "left", overflow="fold")
    for measure in measures:
        table.add_row(*measure)
    return table


def write_report(comparison: dict[str, Any], folder: Path) -> Path:
    """Write report.html (self-contained), report.md, and the plots/*.png that report.md links to.

    Args:
        comparison: the content of comparison.json.
        folder: created if it is missing.

    Returns:
        The path of report.html.
    """
    models, rows = comparison["models"], summary_rows(comparison)
    sections = [_section(number, model, row) for number, (model, row) in enumerate(zip(models, rows, strict=True), 1)]
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    for image in (image for section in sections for image in section["images"]):
        write_atomically(folder / "plots" / image.name, image.content)

    loader, escape = jinja2.FileSystemLoader(TEMPLATES), jinja2.select_autoescape(["html.j2"])
    templates = jinja2.Environment(loader=loader, autoescape=escape, undefined=jinja2.StrictUndefined, trim_blocks=True)
    templates.filters["md"] = _escape_markdown
    templates.filters["base64"] = lambda content: base64.b64encode(content).decode()
    content = {
        "comparison": comparison,
        "sections": sections,
        "summary": _summary_grid(rows),
        "warnings": [warning for model in models for warning in _warnings(model)],
        "environment": Grid(["", ""], [[key, _value(value)] for key, value in comparison["environment"].items()]),
        "has_fused": any("fused" in row.saved_bytes for row in rows),
        "has_cuda": any(row.peak_bytes for row in rows),
    }
    for name in ("report.md", "report.html"):
        write_atomically(folder / name, templates.get_template(f"{name}.j2").render(content).encode())
    return folder / "report.html"


def _summary_row(model: dict[str, Any]) -> SummaryRow:
    comparison = model["comparison"] or {}
    runs = _first_seed_runs(model)

    def measured(key: str) -> dict[str, Any]:
        return {variant: run[key] for variant, run in runs.items() if run[key] is not None}

    return SummaryRow(
        title=model["title"],
        first_loss_identical=comparison.get("first_loss_identical"),
        first_loss_difference=comparison.get("first_loss_difference"),
        largest_difference=comparison.get("largest_difference"),
        smallest_spread=comparison.get("smallest_spread"),
        largest_spread=comparison.get("largest_spread"),
        final_loss={variant: run["loss"][-1]["loss"] for variant, run in runs.items() if run["loss"]},
        saved_bytes=measured("saved_bytes"),
        intermediate_units=measured("intermediate_units"),
        peak_bytes=measured("peak_cuda_allocated_bytes"),
        step_time=model["step_time"],
    )


def _summary_grid(rows: list[SummaryRow]) -> Grid:
    columns: dict[str, Callable[[SummaryRow], str]] = {
        "Model": lambda row: row.title,
        "First loss": _first_loss,
        "Largest loss difference": lambda row: _number(row.largest_difference),
        "Spread between seeds": _spread,
        "Final loss": _final_loss,
        "Kept for backward, MiB": lambda row: _by_variant(row.saved_bytes, plots.mebibytes),
        "Change": lambda row: _change(row.saved_bytes),
        "Kept per MLP, units": lambda row: _by_variant(row.intermediate_units, "{:.2f}".format),
        "Peak CUDA, MiB": lambda row: _by_variant(row.peak_bytes, plots.mebibytes),
        "Step time ratio": _step_time,
    }
    if not any(row.peak_bytes for row in rows):
        del columns["Peak CUDA, MiB"]
    return Grid(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _section(number: int, model: dict[str, Any], row: SummaryRow) -> dict[str, Any]:
    """What the templates show of one model.

    Args:
        number: of the model in the comparison, from 1.
    """
    anchor = f"{number}-" + re.sub(r"[^A-Za-z0-9._-]+", "-", model["name"])
    comparison, data = model["comparison"], model["data"]
    findings = [["First loss", _first_loss(row)]]
    if comparison:
        spread, final = f"spread between seeds: {_spread(row)}", f"spread: {_number(comparison['final_spread'])}"
        findings += [
            ["Largest loss difference", f"{_number(row.largest_difference)} ({spread})"],
            ["Loss difference at the last step", f"{_number(comparison['final_difference'])} ({final})"],
            [f"Steps within the spread, of {comparison['steps']}", _value(comparison["steps_within_spread"])],
        ]
    findings.append(["Change of the bytes kept for backward", _change(row.saved_bytes)])
    if row.peak_bytes:
        findings.append(["Change of the peak CUDA memory, allocated", _change(row.peak_bytes)])
    pairs = f", {row.step_time['pairs']} pairs" if row.step_time else ""
    findings.append(["Step time, inverted / plain", _step_time(row) + pairs])
    size = f"{model['parameters'] / 1e6:,.2f} M parameters"
    source = f"data {data['name']} (SHA-256 {data['sha256'][:12]}, Python {data['python']})"
    return {
        "title": row.title,
        "anchor": anchor,
        "facts": [size, model["task"], f"activation {model['activation']}", model["dtype"], source],
        "findings": Grid(["", ""], findings),
        "images": _images(anchor, model, row),
        "parts": _parts_grid(_first_seed_runs(model)),
        "runs": _runs_grid(model["runs"]),
    }


def _images(prefix: str, model: dict[str, Any], row: SummaryRow) -> list[Image]:
    title, runs = row.title, _first_seed_runs(model)
    curves: dict[str, dict[int, dict[int, float]]] = {}
    for run in sorted(model["runs"], key=lambda run: model["seeds"].index(run["seed"])):
        curves.setdefault(run["variant"], {})[run["seed"]] = {point["step"]: point["loss"] for point in run["loss"]}
    parts = {variant: run["saved_parts"] for variant, run in runs.items() if run["saved_parts"] is not None}
    distance = f"largest {_number(row.largest_difference)}, spread between seeds {_spread(row)}"
    saved, peak = (_by_variant(values, plots.mebibytes) for values in (row.saved_bytes, row.peak_bytes))
    ends = "".join(f" {line}." for line in diverged(model))
    text = f"Training loss of {title} by step and its difference: {distance}.{ends}"
    figures = {"loss": (text, plots.loss_figure(curves))}
    if parts:
        figures["memory"] = (f"MiB that {title} keeps for backward, by part: {saved}.", saved_bytes_figure(parts))
    if row.peak_bytes:
        kinds = ("allocated", "reserved")
        peaks = {name: {kind: runs[name][f"peak_cuda_{kind}_bytes"] for kind in kinds} for name in row.peak_bytes}
        figures["cuda"] = (f"Peak CUDA memory of {title} in MiB: {peak}.", plots.peak_memory_figure(peaks))
    return [Image(f"{prefix}-{kind}.png", alt, png(figure)) for kind, (alt, figure) in figures.items()]


def _parts_grid(runs: dict[str, dict[str, Any]]) -> Grid:
    runs = {variant: run for variant, run in runs.items() if run["saved_parts"] is not None}
    if not runs:
        return Grid(["", ""], [["not measured", ABSENT]])
    rows = [
        [part, *(plots.mebibytes(run["saved_parts"].get(part, 0)) for run in runs.values())]
        for part in ordered_parts(run["saved_parts"] for run in runs.values())
    ]
    return Grid(["MiB", *runs], [*rows, ["total", *(plots.mebibytes(run["saved_bytes"]) for run in runs.values())]])


def _runs_grid(runs: list[dict[str, Any]]) -> Grid:
    metrics = list(dict.fromkeys(metric for run in runs for metric in run["eval"]))
    rows = [
        [
            f"{run['variant']}, seed {run['seed']}",
            _number(run["loss"][-1]["loss"], ".4f") if run["loss"] else ABSENT,
            *(_value(run["eval"].get(metric)) for metric in metrics),
            f"{run['train_seconds']:,.1f}",
            ABSENT if run["step_seconds"] is None else f"{1000 * run['step_seconds']:,.1f}",
        ]
        for run in runs
    ]
    return Grid(["Run", "final train loss", *metrics, "training, s", "median step, ms"], rows)


def _warnings(model: dict[str, Any]) -> list[str]:
    """What a reader must know before looking at the numbers: missing runs, and those that diverged."""
    title, runs = model["title"], _first_seed_runs(model)
    warnings = [f"{title} has no {variant} run." for variant in ("plain", "inverted") if variant not in runs]
    if model.get("inverted") == 0:
        warnings.append(f"nothing was inverted in {title}: both of its runs are plain.")
    return warnings + [f"{line}." for line in diverged(model)]


def _first_seed_runs(model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    runs = {run["variant"]: run for run in model["runs"] if run["seed"] == model["seeds"][0]}
    return {variant: runs[variant] for variant in plots.VARIANTS if variant in runs}


def _first_loss(row: SummaryRow) -> str:
    if row.first_loss_identical:
        return "identical"
    return ABSENT if row.first_loss_difference is None else f"differs by {_number(row.first_loss_difference)}"


def _spread(row: SummaryRow) -> str:
    return ABSENT if row.largest_spread is None else f"{_number(row.smallest_spread)} to {_number(row.largest_spread)}"


def _final_loss(row: SummaryRow) -> str:
    ends = {variant: loss for variant, loss in row.final_loss.items() if variant != "fused"}
    return _by_variant(ends, lambda loss: _number(loss, ".4f"))


def _step_time(row: SummaryRow) -> str:
    return (
        "{ratio:.2f} ({low:.2f}\u00a0to\u00a0{high:.2f})".format(**row.step_time) if row.step_time else "not measured"
    )


def _by_variant(values: Mapping[str, Any], text: Callable[[Any], str]) -> str:
    """plain → (fused) → inverted. Lines break before an arrow."""
    if not values:
        return ABSENT
    plain, inverted = (text(values[variant]) if variant in values else ABSENT for variant in ("plain", "inverted"))
    fused = [f"({text(values['fused'])})"] if "fused" in values else []
    return " →\u00a0".join([plain, *fused, inverted])


def _change(values: Mapping[str, float]) -> str:
    """The change from plain to inverted, and in parentheses from fused to inverted."""
    changes = {base: f"{values['inverted'] / values[base] - 1:+.1%}" for base in values if "inverted" in values}
    against_fused = f" ({changes['fused']})" if "fused" in changes else ""
    return changes.get("plain", ABSENT) + against_fused


def _number(value: float | None, spec: str = ".2g") -> str:
    if value is None:
        return ABSENT
    return "NaN" if math.isnan(value) else format(value, spec)


def _value(value: Any) -> str:
    """A metric or a fact of the environment."""
    return _number(value, ",.5g") if value is None or isinstance(value, float) else str(value)


def _escape_markdown(text: str) -> str:
    """Escape a text, as one line that can be in a table's cell too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))
