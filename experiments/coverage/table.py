"""docs/coverage.md, from the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Row = Mapping[str, Any]

_INTRODUCTION = """\
# Which models are patched

A small model of every model type of the installed Transformers, built from its config alone, is run plain and patched,
forward and backward, in float32 on a CPU. `scripts/render_results.py` writes this page from the results of
`{command}` (torch {torch}, transformers {transformers}, seed {seed}).

{patched} of the {run} types that could be run are patched, and each of them keeps less. The outputs of {identical} are
bit-identical. The others have an activation that Transformers computes unfused, in Python, and that is replaced by
PyTorch's fused function; in each activation the two differ by at most {activation_ulps:.2g} units in the last place of
the largest output (*ulps*). Norms have the same outputs in every bit in float32, bfloat16 and float16, in
{norms_identical} of the {patched} types. Gradients differ by at most {gradient_error:.1e} of their norm,
and by {median_error:.1e} in the median.

Small models have other proportions than real ones: `hf-invact plan` predicts what yours saves. A model that takes
several kinds of input is run on the first kind that suffices, mostly text. Its other parts are patched, but not
measured here.
"""
_HEADER = (
    "| model type | class | patched | plan | kept for backward, KiB | ulps |\n| :-- | :-- | --: | :-- | --: | --: |"
)


def page(results: Mapping[str, Any]) -> str:
    """docs/coverage.md."""
    rows: Sequence[Row] = results["models"]
    patched = [row for row in rows if is_patched(row)]
    run = [row for row in rows if row["plain_bytes"] is not None]
    introduction = _INTRODUCTION.format(
        command=results["command"],
        torch=results["environment"]["torch"],
        transformers=results["environment"]["transformers"],
        seed=results["seed"],
        patched=len(patched),
        run=len(run),
        identical=sum(row["output_ulps"] == 0 for row in patched),
        activation_ulps=max(row["activation_ulps"] for row in patched),
        norms_identical=sum(row["norm_ulps"] == 0 for row in patched),
        gradient_error=max(row["gradient_error"] for row in patched),
        median_error=median(row["gradient_error"] for row in patched),
    )
    sections = [
        introduction,
        "## Patched\n",
        _HEADER,
        *map(_patched, patched),
        "\n## Run, and not patched\n",
        *_reasons(row for row in run if not is_patched(row)),
        "\n## Not run\n\nThe reason is that of the smallest of several attempts.\n",
        *_reasons(row for row in rows if row["plain_bytes"] is None),
    ]
    return "\n".join(sections) + "\n"


def sentence(results: Mapping[str, Any]) -> str:
    """The README's sentence."""
    rows: Sequence[Row] = results["models"]
    patched, run = sum(map(is_patched, rows)), sum(row["plain_bytes"] is not None for row in rows)
    version = results["environment"]["transformers"]
    return (
        f"Of the {run} model types of Transformers {version} that could be built small and run, {patched} are patched "
        "and keep less:\n[which, and why not the others](docs/coverage.md).\n"
    )


def is_patched(row: Row) -> bool:
    """Whether something is inverted in the part of the model that was run."""
    return bool(row["patched"]) and row["patched_bytes"] != row["plain_bytes"]


def _patched(row: Row) -> str:
    plans = ", ".join(f"{plan} ({count})" if len(row["plans"]) > 1 else plan for plan, count in row["plans"].items())
    kept = " → ".join(f"{row[name] / 1024:,.0f}" for name in ("plain_bytes", "patched_bytes"))
    change = row["patched_bytes"] / row["plain_bytes"] - 1
    cells = (row["model_type"], row["model_class"], f"{row['patched']} of {row['sites']}", plans)
    return f"| {' | '.join(cells)} | {kept} ({change:+.0%}) | {row['activation_ulps']:.2g} |"


def _reasons(rows: Iterable[Row]) -> Iterable[str]:
    """A line for each reason."""
    types: dict[str, list[str]] = {}
    for row in rows:
        types.setdefault(_reason(row), []).append(row["model_type"])
    for reason, names in types.items():
        yield f"- {', '.join(names)}: {reason}"


def _reason(row: Row) -> str:
    if row["patched"]:
        return "what is patched is not used with the kind of input that it was run on"
    text = str(row["reason"]).partition(". Supported: ")[0]  # it is always the same list
    return text.replace("|", "\\|")
