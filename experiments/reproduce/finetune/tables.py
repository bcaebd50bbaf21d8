"""The tables of the fine-tuning runs, in Markdown, from finetune.json alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...common.markdown import source_line, table
from ...methods.catalogue import METHODS
from ..subjects import CONTROL
from .analysis import FINAL_LOSS

Results = Mapping[str, Any]

ABSENT = "-"
SCORES = ("eval_accuracy", "eval_f1", "perplexity", "eval_loss")
BOUNDS = {"fp32": 1e-7, "bf16": 1e-4}  # of 1 - cosine
_TRAINING = (
    *("model", "seeds", "final training loss, plain"),
    *("inverted - plain, 95% interval", "control - plain, 95% interval", "evaluation, plain → inverted"),
)

_RUNS = """\
Each model is trained with several seeds: plain, inverted, and as a control (plain, but with one weight moved by one
unit in the last place). Training is chaotic, so two almost identical trainings drift apart; the control shows how far.
Inverted are activations, gates and norms, as by default.
Differences are between runs of the same seed, and their 95% intervals are those of the paired t test: where 0 is
inside, the difference is not distinguishable from none. The final training loss is the mean of the last {final_steps}
steps."""
GRADIENTS = """\
The largest 1 - cosine between whole gradients of one batch (as one vector each, with the same dropout), before, halfway
through and after the plain training of the first seed. The limits are 1e-7 in float32 and 1e-4 in bfloat16 (a cosine of
0.9999999 and 0.9999). *Control* is the plain gradient after one weight was moved by one unit in the last place. The
last column shows what bfloat16 itself changes."""
_SUMMARY = """\
The control is the plain training with one weight moved by one unit in the last place. Where 0 is inside the interval,
the difference is not distinguishable from none. The whole gradients' 1 - cosine is at most {fp32} in float32 and {bf16}
in bfloat16."""
_METHODS = """\
The methods of other papers, trained with the first seed: how far the final training loss is from the plain one's, and
the largest difference at any step."""


def section(results: Results) -> str:
    """All tables, and the line that says where they were measured."""
    models = results["models"]
    has_methods = any(model["analysis"]["methods"] for model in models)
    parts = [
        _RUNS.format(final_steps=models[0]["analysis"]["final_steps"]) if models else "",
        _final(results),
        GRADIENTS,
        gradients(results),
        _METHODS if has_methods else "",
        _methods(results),
        left_out(results),
        source_line(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(results: Results) -> str:
    """The final losses, and the largest gradient error, for the README."""
    models = results["models"]
    rows = [_training(model) for model in models]
    worst = {}
    for dtype, bound in BOUNDS.items():
        entries = [entry for model in models for entry in _gradients_in(model, dtype)]
        worst[dtype] = _worst(entries, "cosine_distance", bound)
    return f"{table(_TRAINING, rows)}\n\n{_SUMMARY.format(**worst)}"


def _final(results: Results) -> str:
    """A row for each model: the paired differences of its final figures, with their intervals."""
    rows = [[*_training(model), _score_difference(model)] for model in results["models"]]
    return table([*_TRAINING, "inverted - plain, 95% interval"], rows)


def _training(model: Results) -> list[str]:
    loss = model["analysis"]["metrics"][FINAL_LOSS]
    differences = [difference(loss[f"{variant} - plain"]) for variant in ("inverted", CONTROL)]
    return [model["title"], str(len(model["seeds"])), estimate(loss["plain"]), *differences, score(model)]


def score(model: Results) -> str:
    """The means of a model's main score."""
    name = _score_of(model)
    evaluated = model["analysis"]["metrics"][name]
    means = " → ".join(f"{evaluated[variant]['mean']:.4g}" for variant in ("plain", "inverted"))
    return f"{name.removeprefix('eval_')} {means}"


def _score_difference(model: Results) -> str:
    return difference(model["analysis"]["metrics"][_score_of(model)]["inverted - plain"])


def _score_of(model: Results) -> str:
    return next(name for name in SCORES if name in model["analysis"]["metrics"])


def estimate(interval: Mapping[str, float]) -> str:
    """A mean, and half of the width of its interval."""
    return f"{interval['mean']:.4f} ± {(interval['high'] - interval['low']) / 2:.4f}"


def difference(interval: Mapping[str, float]) -> str:
    """A mean difference with its interval, which stands out where 0 is outside."""
    verdict = "" if interval["low"] <= 0 <= interval["high"] else " **(not 0)**"
    return f"{interval['mean']:+.1e} [{interval['low']:+.1e}, {interval['high']:+.1e}]{verdict}"


def gradients(results: Results) -> str:
    """The largest distance of each model's whole gradients over the points of its training."""
    header = [
        "model",
        "points",
        "fp32: 1 - cosine, inverted",
        "control",
        "bf16: 1 - cosine, inverted",
        "control",
        "plain bf16 from plain fp32",
    ]
    rows = []
    for model in results["models"]:
        of = {dtype: _gradients_in(model, dtype) for dtype in BOUNDS}
        rows.append(
            [
                model["title"],
                str(len(of["fp32"])),
                _worst(of["fp32"], "cosine_distance", BOUNDS["fp32"]),
                _worst(of["fp32"], "control_cosine_distance"),
                _worst(of["bf16"], "cosine_distance", BOUNDS["bf16"]),
                _worst(of["bf16"], "control_cosine_distance"),
                _worst(of["bf16"], "plain_from_fp32"),
            ]
        )
    return table(header, rows)


def _gradients_in(model: Results, dtype: str) -> list[Mapping[str, Any]]:
    return [entry for entry in model["gradients"] if entry["dtype"] == dtype]


def _worst(entries: list[Mapping[str, float]], key: str, bound: float | None = None) -> str:
    worst = max(entry[key] for entry in entries)
    return f"{worst:.1e}" + (" **(above the limit)**" if bound is not None and not worst <= bound else "")


def _methods(results: Results) -> str:
    models = [model for model in results["models"] if model["analysis"]["methods"]]
    if not models:
        return ""
    names = [entry["method"] for entry in models[0]["analysis"]["methods"]]
    header = ["final loss - plain, one seed", *(model["title"] for model in models)]
    rows = []
    for name in ("inverted", CONTROL, *names):
        title = METHODS[name].title if name in METHODS else name
        rows.append([title, *(_method(model, name) for model in models)])
    return table(header, rows)


def _method(model: Results, name: str) -> str:
    found = {entry["method"]: entry for entry in [*model["analysis"]["methods"], *model["analysis"]["first_seed"]]}
    if name not in found:
        return ABSENT
    return f"{found[name]['difference']:+.1e} (at most {found[name]['largest_difference']:.1e} at a step)"


def left_out(results: Results) -> str:
    """What was not trained, and why."""
    return " ".join(f"{entry['title']} was left out: {entry['why']}." for entry in results["left_out"])
