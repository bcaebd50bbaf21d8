"""The step times as Markdown, from their results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...common.markdown import source_line, table

ABSENT = "-"
MIB = 2**20
COMPILED = "compiled"

Results = Mapping[str, Any]


def section(results: Results) -> str:
    """Step time and bytes kept, a row for each variant and a column for each model, with how they were measured."""
    return _section(f"{METHOD}\n\n{OF_OTHERS}", results)


def section_with_adapters(results: Results) -> str:
    """The same of models with LoRA."""
    return _section(f"{METHOD}\n\n{WITH_ADAPTERS}", results)


def _section(method: str, results: Results) -> str:
    measured = [entry for entry in results["entries"] if "variants" in entry]
    return "\n\n".join(filter(None, [method, *_tables(measured), _notes(results), _source(results, measured)])) + "\n"


METHOD = """\
A step is forward, backward, clipping and AdamW, as the Trainer takes it, on one batch of the run's own data. All
variants take turns on the same model in one process, with every second round reversed (first plain and inverted, then
plain and the others), and with the same weights at every step (the learning rate is 0). A ratio compares a step with
the plain step of the same turn; the table gives the median, with the quartiles in parentheses. *Kept* counts the bytes
that autograd saves for backward."""
OF_OTHERS = """\
The methods of other papers are written in plain PyTorch here, as ours are with the backend `eager`. The GPU kernels of
their authors are not measured. SmolLM2 is not compiled as a whole, which takes minutes on a CPU. In compiled models,
ours use the backend `compile` on a CPU, and `triton` on a GPU."""
WITH_ADAPTERS = """\
Inverted are the activations, and adapters keep their input once. Norms are plain
(`sites=("adapter", "activation")`)."""


def _tables(entries: Sequence[Results]) -> list[str]:
    if not entries:
        return []
    names = {name: facts["title"] for entry in entries for name, facts in entry["variants"].items()}
    head = [f"{entry['title']}, {entry['batch'][0]}x{entry['batch'][1]}" for entry in entries]
    relative = {name: facts for entry in entries for name, facts in entry["variants"].items() if "ratio_to" in facts}
    times = _rows(names, entries, _time)
    for name, facts in relative.items():
        (other,) = facts["ratio_to"]
        rows = _rows({name: f"{names[name]} / {names[other]}"}, entries, lambda facts, plain: _relative(facts))
        times += rows
    kept = _rows(names, entries, _kept)
    return [table(["step time, plain = 1", *head], times), table(["kept, MiB", *head], kept)]


def _rows(
    names: Mapping[str, str], entries: Sequence[Results], cell: Callable[[Results, Results], str]
) -> list[list[str]]:
    rows = []
    for name, title in names.items():
        cells = [cell(entry["variants"].get(name, {}), entry["variants"]["plain"]) for entry in entries]
        if set(cells) != {ABSENT}:
            rows.append([title, *cells])
    return rows


def _time(facts: Results, plain: Results) -> str:
    if "ratio" in facts:
        return _spread(facts["ratio"])
    return f"{facts['step_ms']:,.1f} ms" if "step_ms" in facts else "failed" if "failed" in facts else ABSENT


def _relative(facts: Results) -> str:
    return next(map(_spread, facts.get("ratio_to", {}).values()), ABSENT)


def _kept(facts: Results, plain: Results) -> str:
    if "kept_bytes" not in facts:
        return ABSENT
    kept, before = facts["kept_bytes"], plain.get("kept_bytes")
    change = f" ({kept / before - 1:+.1%})" if before and facts is not plain else ""
    return f"{kept / MIB:,.1f}{change}"


def _spread(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['lower']:.3f} to {ratio['upper']:.3f})"


def _notes(results: Results) -> str:
    """The reasons for each dash, a line for each reason."""
    titles: dict[str, dict[str, None]] = {}
    for entry in results["entries"]:
        if "variants" not in entry:
            titles.setdefault(_reason(entry), {})[entry["title"]] = None
        for facts in entry.get("variants", {}).values():
            if "step_ms" not in facts:
                titles.setdefault(_reason(facts), {})[f"{facts['title']} for {entry['title']}"] = None
    return "\n".join(f"- Not measured: {', '.join(of_reason)}: {reason}." for reason, of_reason in titles.items())


def _reason(facts: Results) -> str:
    reason: str = facts.get("unavailable") or f"failed, {facts['failed']}"
    return reason.rstrip(".")


def _source(results: Results, measured: Sequence[Results]) -> str:
    ours, others = (sorted({entry[key] for entry in measured}) for key in ("rounds", "other_rounds"))
    turns = f" Turns: {_range(ours)} of plain and inverted, {_range(others)} of the others" if measured else ""
    rounds = f"{turns}, seed {results['settings']['seed']}." if measured else ""
    return f"{source_line(results)}{rounds}{_losses(measured)}"


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _losses(measured: Iterable[Results]) -> str:
    """How far the first losses are from the plain one. A compiler draws other random numbers for dropout."""
    differences = [
        abs(facts["first_loss"] / entry["variants"]["plain"]["first_loss"] - 1)
        for entry in measured
        for name, facts in entry["variants"].items()
        if "first_loss" in facts and "first_loss" in entry["variants"]["plain"] and not name.startswith(COMPILED)
    ]
    if not differences:
        return ""
    worst = max(differences)
    found = f"differ from the plain one by at most {worst:.1g} of it" if worst else "are bit-identical"
    return f" The first losses of all variants but torch.compile, which has other dropout, {found}."
