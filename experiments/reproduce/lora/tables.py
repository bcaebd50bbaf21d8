"""The tables of the fine-tuning runs with LoRA, in Markdown, from lora.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_invact.display.sizes import size

from ...common.markdown import source_line, table
from ..finetune.analysis import FINAL_LOSS
from ..finetune.tables import GRADIENTS, difference, estimate, gradients, left_out, score
from ..subjects import ADAPTERS, CONTROL

Results = Mapping[str, Any]

_RUNS = """\
LoRA with its dropout on all linear layers, in float32. *Adapters* is `InvActConfig(sites=("adapter",))`: the adapters
of a layer keep its input once, and their dropout as bits, which is exact. *Inverted* has inverted gates and norms too,
as by default. The control and the intervals are as above. The final training loss is the mean of the last {final_steps}
steps."""
_KEPT = "What the first step keeps for the backward pass:"
_VARIANTS = {"plain": "plain", ADAPTERS: "adapters", "inverted": "inverted"}


def section(results: Results) -> str:
    """All tables, and the line that says where they were measured."""
    models = results["models"]
    parts = [left_out(results), source_line(results)]
    if models:
        introduction = _RUNS.format(final_steps=models[0]["analysis"]["final_steps"])
        parts = [introduction, _losses(models), _KEPT, _kept(models), GRADIENTS, gradients(results), *parts]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(results: Results) -> str:
    """A sentence for each model, and the line that says where it was measured, for the README and the page on LoRA."""
    return "\n".join([*map(_sentence, results["models"]), "", source_line(results), ""])


def _sentence(model: Results) -> str:
    kept = {variant: size(_kept_bytes(model, variant)) for variant in _VARIANTS}
    return (
        f"With LoRA on all linear layers and its dropout, {model['title']} keeps {kept['plain']} for the backward pass "
        f"of a step; {kept[ADAPTERS]} where adapters keep their input once ({_largest(model, ADAPTERS)}); "
        f"{kept['inverted']} with inverted gates and norms too (final loss, inverted - plain: "
        f"{difference(_of_final_loss(model, 'inverted'))})."
    )


def _losses(models: list[Results]) -> str:
    header = [
        *("model", "seeds", "steps", "final training loss, plain", "adapters - plain, at any step"),
        *("inverted - plain, 95% interval", "control - plain, 95% interval", "evaluation, plain → inverted"),
    ]
    rows = [
        [
            model["title"],
            str(len(model["seeds"])),
            str(len(model["runs"][0]["steps"])),
            estimate(model["analysis"]["metrics"][FINAL_LOSS]["plain"]),
            _largest(model, ADAPTERS),
            *(difference(_of_final_loss(model, variant)) for variant in ("inverted", CONTROL)),
            score(model),
        ]
        for model in models
    ]
    return table(header, rows)


def _of_final_loss(model: Results, variant: str) -> Mapping[str, float]:
    found: Mapping[str, float] = model["analysis"]["metrics"][FINAL_LOSS][f"{variant} - plain"]
    return found


def _largest(model: Results, variant: str) -> str:
    largest = model["analysis"]["largest_difference"][variant]
    return f"at most {largest:.1e}" if largest else "every loss is the same"


def _kept(models: list[Results]) -> str:
    rows = []
    for model in models:
        plain = _kept_bytes(model, "plain")
        kept = [_kept_bytes(model, variant) for variant in _VARIANTS]
        rows.append([model["title"], size(plain), *(f"{size(each)} ({each / plain - 1:+.1%})" for each in kept[1:])])
    return table(["model", *_VARIANTS.values()], rows)


def _kept_bytes(model: Results, variant: str) -> int:
    kept: int = next(run["saved_bytes"] for run in model["runs"] if run["variant"] == variant)
    return kept
