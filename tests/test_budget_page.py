"""The code and the commands of docs/memory-budget.md run as they stand."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

import hf_invact
from hf_invact.cli import main
from hf_invact.patching.budget import parse_budget
from hf_invact.planning.budget.choose import reserve_bytes
from hf_invact.sites import patched_sites
from tests.models import tiny_model
from tests.test_cli import LLAMA

PAGE = Path(__file__).parents[1] / "docs" / "memory-budget.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_its_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    planned, by_hand = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, Any] = {"hf_invact": hf_invact, "model": tiny_model("llama")}
    exec(compile(planned, PAGE.name, "exec"), names)
    assert "memory budget of 6.00 MiB: 0 of 2 layers checkpointed" in capsys.readouterr().out
    assert list(patched_sites(names["model"]))
    exec(compile(by_hand, PAGE.name, "exec"), names)
    assert "model.layers.0" in capsys.readouterr().out
    assert not list(patched_sites(names["model"]))


def test_its_commands_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, plan = (shlex.split(code) for code in re.findall(r"```bash\n(.*?)\n```", TEXT))
    (config,) = (word for word in run if word.startswith("{"))
    assert hf_invact.InvActConfig.from_dict(json.loads(config)).memory_budget == "24GiB"
    monkeypatch.chdir(tmp_path)
    Path("my-model").mkdir()
    Path("my-model/config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    assert main(plan[1:]) == 0
    assert "memory budget of 24.00 GiB, of which 1.10 GiB are reserved" in capsys.readouterr().out


def test_the_reserve_is_what_it_says() -> None:
    assert "512 MiB for CUDA's context and 2.5% of the budget" in TEXT
    amount = parse_budget("40GiB").amount
    assert amount is not None
    assert reserve_bytes(amount, "cuda") == 512 * 2**20 + amount // 40


def test_its_figures_are_the_committed_ones() -> None:
    assert runpy.run_path(str(PAGE.parents[1] / "scripts" / "render_results.py"))["budget_page"]() == TEXT
