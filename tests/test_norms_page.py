"""The page about norms: its results are the committed ones, and what it says can be run."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from hf_invact import InvActConfig, patch_model
from tests.models import tiny_model

PAGE = Path(__file__).parents[1] / "docs" / "norms.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_its_results_are_those_that_are_committed() -> None:
    assert runpy.run_path(str(PAGE.parents[1] / "scripts" / "render_results.py"))["norms_page"]() == TEXT


def test_its_example_leaves_norms_alone(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    model = tiny_model("llama")
    exec(code, {"model": model})
    assert "norm" not in capsys.readouterr().out
    assert "norm-output: keeps the norm's output" in str(patch_model(model))


def test_its_option_of_the_trainer_is_one() -> None:
    (options,) = re.findall(r"--inverted_activations_config '(.*?)'", TEXT)
    assert InvActConfig.from_dict(json.loads(options)).sites == ("adapter", "activation")


def test_it_names_every_plan() -> None:
    plans = {plan.name for kind in InvActConfig(sites=("norm",)).kinds for plan in kind.plans}
    assert plans == set(re.findall(r"^\| `(.+?)` \|", TEXT, re.MULTILINE))
