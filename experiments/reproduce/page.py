"""docs/reproduction.md, and the README's section, from the results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.files import read_json
from ..common.markdown import source_line
from .budget import tables as budget_tables
from .command import MARKER, PARTS
from .finetune import tables as finetune_tables
from .lora import tables as lora_tables
from .memory import tables as memory_tables
from .methods import tables as methods_tables
from .pareto import tables as pareto_tables
from .steps import tables as steps_tables

Results = Mapping[str, Any]

SECTIONS = {
    "memory": memory_tables.section,
    "methods": methods_tables.section,
    "steps": steps_tables.section,
    "finetune": finetune_tables.section,
    "lora": lora_tables.section,
    "lora_steps": steps_tables.section_with_adapters,
    "budget": budget_tables.section,
    "pareto": pareto_tables.section,
}
TITLES = {
    "memory": "Memory",
    "methods": "Other approximations",
    "steps": "Step time",
    "finetune": "The same training",
    "lora": "The same training with LoRA",
    "lora_steps": "Step time with LoRA",
    "budget": "Memory budgets",
    "pareto": "Memory against time",
}
_INTRODUCTION = """\
# The published experiments, reproduced

Inverted activations promise much less activation memory, the same training, and almost no extra time. Here each promise
is measured, together with the alternatives. `make reproduce` measures everything again on a CPU (the results here took
{minutes:.0f} minutes), and `make reproduce-quick` runs the same code with tiny settings. To start from scratch, remove
`results/reproduction` first. This page is written by `scripts/render_results.py` from the files in
`results/reproduction`.

What a sceptical reader should know first:

- If only memory counts, activation checkpointing keeps by far the least, at the cost of another forward pass. Inverted
  activations then save next to nothing more.
- `torch.compile` recomputes cheap functions by itself. For some models it alone keeps less than inverted activations
  (Llama, GPT-2 in half precision), for others no less than the plain model (BERT). The two add up.
- *Activation recomputed* below keeps a little less than the inverted one, and its gradient is exact. It was written for
  this comparison, with hooks around the model's forward pass that see every tensor that autograd saves. It was not
  tried with autocast, which makes copies, nor with `torch.compile`. This package installs nothing but an autograd
  function, so it can be combined with all of these.
- The other approximations keep more than the inverted gate or activation. The published formulas keep as much where
  MLPs are not gated, but their gradients are further off (for SiLU in half precision they are NaN).
- Time on a GPU is not yet measured.
"""


def read_parts(folder: Path) -> dict[str, Results]:
    """The results of each part that has some."""
    found = {part: read_json(folder / f"{part}.json") for part in PARTS}
    return {part: results for part, results in found.items() if results is not None}


def read_minutes(folder: Path) -> float:
    """The time of all parts."""
    seconds: Mapping[str, float] = read_json(folder / MARKER) or {}
    return sum(seconds.values()) / 60


def page(parts: Mapping[str, Results], figures: Mapping[str, list[str]], minutes: float) -> str:
    """The whole page.

    Args:
        parts: by name.
        figures: the links to the figures of each part.
        minutes: the time of all parts.
    """
    blocks = [_INTRODUCTION.format(minutes=minutes)]
    for part, results in parts.items():
        images = "\n".join(f"![{Path(path).stem}]({path})" for path in figures[part])
        blocks += [f"## {TITLES[part]}\n", SECTIONS[part](results), f"{images}\n"]
    return "\n".join(blocks)


def summary(parts: Mapping[str, Results]) -> str:
    """The README's section: the published memory and what is counted, and how far trainings differ."""
    texts = []
    if memory := parts.get("memory"):
        texts.append(memory_tables.headline(memory))
    if finetune := parts.get("finetune"):
        texts.append(f"{finetune_tables.headline(finetune)}\n\n{source_line(finetune)}\n")
    if lora := parts.get("lora"):
        texts.append(lora_tables.summary(lora))
    return "\n".join(texts)
