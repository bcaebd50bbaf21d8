"""Small models of any type, plain and patched; and the committed results of all types."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from experiments.coverage import table
from experiments.coverage.check import Coverage, check
from experiments.coverage.command import main
from experiments.coverage.errors import UncoveredError
from experiments.coverage.processes import check_all
from experiments.coverage.shrink import MODEL_TYPES, small_configs

ROOT = Path(__file__).parents[3]
RESULTS: dict[str, Any] = json.loads((ROOT / "results" / "coverage.json").read_text(encoding="utf-8"))
PATCHED = [row for row in RESULTS["models"] if table.is_patched(row)]
# Their `gelu_python` calls torch.erf, which is not the same function to the last places as the one inside F.gelu.
ULPS = {"sew-d": 4, "videoprism": 3}
EVERY = 20  # of all model types, this one is run again


def test_at_least_150_types_are_patched() -> None:
    assert len(PATCHED) >= 150
    assert len(RESULTS["models"]) == len({row["model_type"] for row in RESULTS["models"]})


def test_patched_types_keep_less_and_compute_the_same() -> None:
    """All types that break it are named."""
    broken = {row["model_type"]: what for row in PATCHED if (what := _broken(row))}
    assert broken == {}


def _broken(row: dict[str, Any]) -> list[str]:
    holds = {
        "keeps less": row["patched_bytes"] < row["plain_bytes"],
        "activations are the same but for rounding": row["activation_ulps"] <= ULPS.get(row["model_type"], 2),
        "so are outputs": row["output_ulps"] == 0 or row["activation_ulps"] > 0,
        "norms have the same outputs in every bit": row["norm_ulps"] == 0,
        "gradients differ little": row["gradient_error"] < 1e-3,
    }
    return [what for what, does in holds.items() if not does]


def test_gradients_differ_little_where_nothing_cancels_them() -> None:
    errors = sorted(row["gradient_error"] for row in PATCHED)
    assert errors[len(errors) * 99 // 100] < 1e-5


def test_none_keeps_more_and_none_fails() -> None:
    assert [row["model_type"] for row in RESULTS["models"] if row["error"]] == []
    run = [row for row in RESULTS["models"] if row["patched_bytes"] is not None]
    assert [row["model_type"] for row in run if row["patched_bytes"] > row["plain_bytes"]] == []
    assert all(row["reason"] for row in RESULTS["models"] if not row["patched"])


def test_the_page_is_what_the_results_say() -> None:
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == table.page(RESULTS)


def again() -> list[str]:
    return [row["model_type"] for row in RESULTS["models"] if row["plain_bytes"] is not None][::EVERY]


@pytest.mark.slow
@pytest.mark.skipif(
    RESULTS["environment"]["transformers"] != transformers.__version__, reason="measured with another Transformers"
)
def test_a_run_gives_what_is_committed() -> None:
    committed = {row["model_type"]: row for row in RESULTS["models"]}
    for found in check_all(again(), seconds=300):
        row = committed[found.model_type]
        for name in ("model_class", "sites", "patched", "plans", "plain_bytes", "patched_bytes", "reason", "error"):
            assert getattr(found, name) == row[name], f"{found.model_type}: {name}"


@pytest.mark.parametrize(
    ("model_type", "plan", "is_identical"),
    [("gpt2", "output", False), ("bert", "output", True), ("llama", "gate-output", True), ("vit", "output", True)],
)
def test_compares_a_model_with_itself(model_type: str, plan: str, is_identical: bool) -> None:
    found = check(model_type)
    assert set(found.plans) == {plan, "norm-output"}
    left_alone = 2 if model_type == "bert" else 0  # norms of which nobody keeps the output
    assert found.patched == sum(found.plans.values()) == found.sites - left_alone
    assert found.norm_ulps == 0
    assert found.plain_bytes is not None
    assert found.patched_bytes is not None
    assert 0 < found.patched_bytes < found.plain_bytes
    assert found.gradient_error is not None
    assert 0 < found.gradient_error < 1e-5
    assert (found.output_ulps == 0) is is_identical


def test_says_why_a_type_is_not_patched() -> None:
    found = check("resnet")
    assert found.patched == 0
    assert found.patched_bytes is None
    assert "ReLU is left alone" in found.reason


def test_says_why_a_type_cannot_be_run() -> None:
    found = check("seggpt")
    assert (found.plain_bytes, found.patched) == (None, 0)
    assert "prompt_pixel_values" in found.reason


@pytest.mark.parametrize("model_type", ["llama", "t5", "vit", "mixtral", "whisper"])
def test_configs_are_small_and_of_the_type(model_type: str) -> None:
    config, *_ = small_configs(model_type)
    assert config.model_type == model_type
    assert config.hidden_size <= 32
    assert config.num_hidden_layers <= 2


def test_a_config_that_cannot_be_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ValueError("must be large")

    monkeypatch.setitem(transformers.models.auto.configuration_auto.CONFIG_MAPPING._extra_content, "huge", refuse)
    with pytest.raises(UncoveredError, match="must be large"):
        small_configs("huge")


def hang_die_fail_or_work(model_type: str) -> Coverage:
    if model_type == "hangs":
        time.sleep(60)
    if model_type == "dies":
        os._exit(3)
    if model_type == "fails":
        raise RuntimeError("once it is patched")
    return Coverage(model_type, "Works")


def test_a_model_that_hangs_or_dies_stops_no_other() -> None:
    start = time.monotonic()
    types = ["hangs", "dies", "fails", "works", "works too"]
    found = {each.model_type: each for each in check_all(types, seconds=5, jobs=2, check=hang_die_fail_or_work)}
    assert time.monotonic() - start < 30
    assert list(found) != types  # in the order in which they end
    assert found["hangs"].reason == "takes more than 5 s"
    assert found["dies"].reason == "its process died (exit code 3)"
    assert found["fails"].error == "RuntimeError: once it is patched"
    assert found["works"].model_class == found["works too"].model_class == "Works"


def test_the_page_tells_patched_unused_and_unpatched_apart() -> None:
    patched = Coverage("a", "A", 3, 2, {"output": 2}, 4096, 2048, 0.5, 0.0, 1.0, 1e-6)
    rows = [
        patched,
        replace(patched, model_type="b", patched_bytes=4096),
        Coverage("c", "C", plain_bytes=10, reason="no activation to invert in C. Supported: GELU"),
        Coverage("d", reason="no|pe"),
    ]
    page = table.page({**RESULTS, "models": [row.as_json() for row in rows]})
    assert "1 of the 3 types that could be run" in page
    assert "| a | A | 2 of 3 | output | 4 → 2 (-50%) | 0.5 |" in page
    assert "- b: what is patched is not used with the kind of input that it was run on" in page
    assert "- c: no activation to invert in C\n" in page
    assert "- d: no\\|pe" in page


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["no-such-type"], "no-such-type"),
        (["gpt2", "--seconds", "nan"], "--seconds must be a number above 0, got nan"),
        (["gpt2", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
    ids=["type", "seconds", "jobs"],
)
def test_the_script_refuses_what_it_cannot_use(
    capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err
    assert "gpt2" in MODEL_TYPES
