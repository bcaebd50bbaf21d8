"""The tables of the part "methods", from its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...common.markdown import source_line, table

ABSENT = "-"
MIB = 2**20
CURVE_TITLES = {"gelu": "GELU", "silu": "SiLU", "gelu_tanh": "GELU, tanh form"}


def section(results: Mapping[str, Any]) -> str:
    """What each method keeps, the error of its derivative, and that of whole gradients, in Markdown.

    Args:
        results: the content of methods.json.
    """
    parts = [_EXPLANATION]
    parts += [_model(results, model) for model in results["settings"]["models"]]
    parts += [_derivatives(results), _notes(results), _source(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


_EXPLANATION = """\
Each method is installed in the same model, and the gradient of one batch of text is compared with the plain model's in
the same dtype, with the same dropout. *Kept* is what autograd saves for backward: per MLP in tensors of the
intermediate size (I), and of the whole model. *1 - cosine* is that of the whole gradient as one vector, *error* the
length of the difference relative to that of the plain gradient; *identical* means bit-identical. In gated models, all
methods but the inverted gate, recomputation and checkpointing replace only the activation, as they were published. The
steps of the derivative in a few bits are optimal for x ~ N(0, 1), as they were published; activations of pretrained
models have heavier tails, for which more bits need not help."""


def _model(results: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    dtypes = results["settings"]["dtypes"]
    entries = {
        (entry["dtype"], entry["method"]): entry
        for entry in results["gradients"]
        if entry["model"] == model["name"] and "unavailable" not in entry
    }
    if not entries:
        return ""
    head = [
        model["title"],
        *(f"{dtype}: {what}" for dtype in dtypes for what in ("per MLP", "kept", "1 - cosine", "error")),
    ]
    rows = [
        [_title(method), *(cell for dtype in dtypes for cell in _gradient_cells(entries, dtype, name))]
        for name, method in results["settings"]["methods"].items()
    ]
    return table(head, rows)


def _gradient_cells(entries: Mapping[tuple[str, str], Mapping[str, Any]], dtype: str, name: str) -> list[str]:
    entry, plain = entries.get((dtype, name)), entries.get((dtype, "plain"))
    if entry is None or plain is None:
        return [ABSENT] * 4
    units = ABSENT if entry["intermediate_units"] is None else f"{entry['intermediate_units']:.2f} I"
    kept = f"{entry['kept_bytes'] / MIB:,.1f} MiB"
    if entry["kept_bytes"] != plain["kept_bytes"]:
        kept = f"{entry['kept_bytes'] / plain['kept_bytes'] - 1:+.1%}"
    if entry["identical"]:
        return [units, kept, "identical", "0"]
    if entry["cosine_distance"] is None:
        return [units, kept, f"NaN ({entry['non_finite']:.0%})", "NaN"]
    return [units, kept, f"{entry['cosine_distance']:.1e}", f"{entry['relative_error']:.1e}"]


def _derivatives(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    columns = [(curve, dtype) for curve in settings["curves"] for dtype in settings["dtypes"]]
    entries = {(entry["curve"], entry["dtype"], entry["method"]): entry for entry in results["derivatives"]}
    head = ["derivative, x ~ N(0, 1): rms / max / bias"]
    head += [f"{CURVE_TITLES.get(curve, curve)}, {dtype}" for curve, dtype in columns]
    # Recomputation and checkpointing use the plain derivative.
    shown = {name: method for name, method in settings["methods"].items() if name == "plain" or not method["exact"]}
    rows = [
        [_title(method), *(_derivative_cell(entries.get((*column, name))) for column in columns)]
        for name, method in shown.items()
    ]
    return table(head, rows)


def _derivative_cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None or "unavailable" in entry:
        return ABSENT
    broken = f", NaN: {entry['non_finite']:.2%}" if entry["non_finite"] else ""
    if entry["rms"] is None:
        return "NaN"
    return f"{entry['rms']:.1e} / {entry['max']:.1e} / {entry['bias']:+.0e}{broken}"


def _notes(results: Mapping[str, Any]) -> str:
    """The reasons for each dash."""
    reasons: dict[str, list[str]] = {}
    for entry in [*results["derivatives"], *results["gradients"]]:
        if "unavailable" in entry:
            what = entry.get("model") or f"{entry['method']}, {entry['curve']}"
            reasons.setdefault(entry["unavailable"], []).append(what)
    return "\n".join(f"- {', '.join(dict.fromkeys(what))}: {reason}." for reason, what in reasons.items())


def _source(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    sources = dict.fromkeys(method["source"] for method in settings["methods"].values() if method["source"])
    cut = "" if results["complete"] else " The run was interrupted, and some results are missing."
    facts = f"Seed {settings['seed']}, {settings['draws']:,} draws. Sources: {'; '.join(sources)}."
    return f"{source_line(results)}{cut} {facts}"


def _title(method: Mapping[str, Any]) -> str:
    title: str = method["title"]
    return title
