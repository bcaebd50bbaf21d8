"""The results of the part "memory" as Markdown: pure functions of memory.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hf_invact.display.sizes import UNITS, common_unit
from hf_invact.memory import PARTS

from .cases import ACTIVATION, GELU_IN_PLACE_OF_SILU, OURS, PLAIN
from .counting import NOT_TOLD_APART

ABSENT = "-"
Entry = Mapping[str, Any]

_INTRODUCTION = """\
What is counted are the distinct storages that autograd saves in one forward pass, without weights and inputs. They are
counted on tensors that have shapes but no memory, and that are saved as by CUDA's kernels. *Activation* is what MLPs
keep between their projections. The variants:

- *activation inverted* is the paper's: the activation's output and one bit per element replace its input.
- *ours* is `patch_model` with its defaults: each kind of block gets the plan that keeps the least, adapters keep the
  input of their layer once, and norms their output, or their input without copies. *Ours, without norms* and *ours,
  activations alone* leave the others as they are.
- *exact gate* keeps both factors of the gate and recomputes its activation, as Liger's does.
- *fused activation* is PyTorch's function for a formula that Transformers computes unfused. Inverted activations use it
  anyway, so *fused + ours* keeps as much as *ours*.
- *checkpointing* keeps the input of each layer and recomputes the layer. What is kept inside of that one layer during
  its backward pass is not counted here.
- *torch.compile* is what inductor's own passes and partitioner keep of the traced model, extrapolated from {few} and
  {more} layers, since all layers are alike. Its graph has no modules, so its parts cannot be told apart. Transformers
  gives a traced decoder a causal mask, which flash attention does not accept: keys and values of grouped heads are then
  kept repeated.

*Measured* is the growth of a GPU's allocated memory in the forward pass.
"""
_NOTEBOOK = """\
The reference notebook loads 4-bit weights, attaches no adapter, replaces SiLU with GELU, and runs the forward pass in
evaluation mode. Its frozen layers keep their inputs in bfloat16, as bitsandbytes did at the time, and hidden states are
float32. Here it is emulated with layers that keep the same tensors, without the key-value cache that the published
figure includes.
"""


def section(results: Mapping[str, Any]) -> str:
    """The part's tables, for docs/reproduction.md."""
    few, more = results["settings"]["sampled_layers"]
    blocks = [_INTRODUCTION.format(few=few, more=more).strip(), _headline_table(results)]
    for entries in _cases(results):
        blocks += [f"### {entries[0]['model']}, {entries[0]['setting']}", *_case(entries)]
    return "\n\n".join([*blocks, _source(results)]) + "\n"


def headline(results: Mapping[str, Any]) -> str:
    """The published figures and what is counted here, for the README."""
    return f"{_headline_table(results)}\n\n{_source(results)}\n"


def _headline_table(results: Mapping[str, Any]) -> str:
    rows = [
        "| kept for the backward pass | published, GPU | the same, counted | ours, counted | of the published |",
        "| :-- | --: | --: | --: | --: |",
    ]
    by_model: dict[str, list[list[Entry]]] = {}
    for entries in _cases(results):
        if entries[0]["published"] is not None:
            by_model.setdefault(entries[0]["model"], []).append(entries)
    for model, settings in by_model.items():
        as_published, real = settings[0], settings[-1]
        published = real[0]["published"]
        change = f"{published['change']:+.1%}"
        ours = _named(real, OURS.name)
        cells = [
            f"{model}, {real[0]['setting'].removesuffix(', as published')}",
            f"{published['plain']:g} → {published['inverted']:g} GiB with weights ({change})",
            _from_to(_named(as_published, PLAIN.name), _as_published(as_published)),
            _from_to(_named(real, PLAIN.name), ours),
            _against_published(ours, _named(real, PLAIN.name)),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _case(entries: Sequence[Entry]) -> Iterator[str]:
    """The blocks below a case's heading."""
    if entries[0]["inputs"]["quantized"]:
        yield _NOTEBOOK.strip()
    yield _table(entries)
    if entries[0]["inputs"]["forward_only"] and entries[0]["published"] is not None:
        yield _published(entries)
    yield "\n".join(_notes(entries))


def _published(entries: Sequence[Entry]) -> str:
    published = entries[0]["published"]
    text = (
        f"Published: {published['plain']:g} → {published['inverted']:g} GiB allocated, of which "
        f"{published['weights']:g} are weights ({published['change']:+.1%} of the rest; {published['source']})."
    )
    pair = (_named(entries, PLAIN.name), _as_published(entries))
    if entries[0]["inputs"]["quantized"]:  # the emulated 4-bit weights are larger
        counted = [published["weights"] + entry["kept_bytes"] / UNITS["GiB"] for entry in pair if entry is not None]
        text += " Counted, with the published weights"
    else:
        both = [entry["kept_bytes"] + entry["weights_bytes"] for entry in pair if entry is not None]
        counted = [size / UNITS["GiB"] for size in both]
        text += " Counted, with weights"
    return f"{text}: {' → '.join(f'{size:.2f}' for size in counted)} GiB."


def _notes(entries: Sequence[Entry]) -> Iterator[str]:
    """Sentences on what was not counted and why, on our plans, and on what was not measured."""
    yield from (f"{entry['variant']}: {entry['reason']}." for entry in entries if entry["reason"])
    ours = _named(entries, OURS.name)
    if ours is not None and ours["plans"]:
        yield "Plans of *ours*: " + ", ".join(f"{plan} ({count})" for plan, count in ours["plans"].items()) + "."
    notes = dict.fromkeys(entry["measured_note"] for entry in entries if entry["measured_note"])
    if notes:
        yield f"Measured: {'; '.join(notes)}."


def _table(entries: Sequence[Entry]) -> str:
    counts = [entry["kept_bytes"] for entry in entries if entry["kept_bytes"] is not None]
    unit = common_unit(max(counts))
    least = UNITS[unit] / 200  # shown as 0.01, not 0.00
    parts = [part for part in PARTS if any(entry["parts"].get(part, 0) >= least for entry in entries)]
    plain = entries[0]
    compares = plain["published"] is not None
    head = [f"kept, {unit}", *parts, "all", "change", *(["of the published"] if compares else []), f"measured, {unit}"]
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
    for entry in entries:
        is_split = entry["parts"] and NOT_TOLD_APART not in entry["parts"]
        cells = [entry["variant"]]
        cells += [_in(entry["parts"].get(part, 0), unit) if is_split else ABSENT for part in parts]
        cells += [_in(entry["kept_bytes"], unit), _change(entry, plain)]
        cells += [_against_published(entry, plain)] if compares else []
        cells.append(_in(entry["measured_bytes"], unit))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(results: Mapping[str, Any]) -> list[list[Entry]]:
    """The entries of each case, in their order."""
    cases: dict[str, list[Entry]] = {}
    for entry in results["entries"]:
        cases.setdefault(entry["case"], []).append(entry)
    return list(cases.values())


def _named(entries: Sequence[Entry], variant: str) -> Entry | None:
    """The variant's entry; None if there is none, or if nothing was counted."""
    return next((e for e in entries if e["variant"] == variant and e["kept_bytes"] is not None), None)


def _as_published(entries: Sequence[Entry]) -> Entry | None:
    """The entry of the published variant."""
    return _named(entries, GELU_IN_PLACE_OF_SILU.name) or _named(entries, ACTIVATION.name)


def _from_to(plain: Entry | None, other: Entry | None) -> str:
    if plain is None or other is None:
        return ABSENT
    unit = common_unit(plain["kept_bytes"])
    return f"{_in(plain['kept_bytes'], unit)} → {_in(other['kept_bytes'], unit)} {unit} ({_change(other, plain)})"


def _change(entry: Entry, plain: Entry) -> str:
    if entry is plain or entry["kept_bytes"] is None:
        return ABSENT
    return f"{entry['kept_bytes'] / plain['kept_bytes'] - 1:+.1%}"


def _against_published(entry: Entry | None, plain: Entry | None) -> str:
    """The saving, as a multiple of the published one."""
    if entry is None or plain is None or entry is plain or entry["kept_bytes"] is None:
        return ABSENT
    saving = entry["kept_bytes"] / plain["kept_bytes"] - 1
    return f"{saving / entry['published']['change']:.2f}x"


def _in(count: int | None, unit: str) -> str:
    return ABSENT if count is None else f"{count / UNITS[unit]:,.2f}"


def _source(results: Mapping[str, Any]) -> str:
    where = results["environment"]
    measured = any(entry["measured_bytes"] is not None for entry in results["entries"])
    on_gpu = f"Measured on {where['device']}." if measured else "Not yet measured on a GPU."
    return (
        f"Counted with torch {where['torch']}, transformers {where['transformers']} by `{results['command']}`. {on_gpu}"
    )
