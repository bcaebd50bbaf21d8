"""The part "methods": its file, how it continues after an interruption, its tables and its plots."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.methods.catalogue import COMPARED
from experiments.reproduce.methods import plots as methods_plots
from experiments.reproduce.methods import run as methods
from experiments.reproduce.methods import tables as methods_tables
from experiments.reproduce.methods.models import CASES, CONFIGS, MethodCase
from tests.models import batch, tiny_model

FEW = {name: COMPARED[name] for name in ("plain", "inverted", "few-bit-3", "recompute")}
COMMAND = "scripts/reproduce.py methods --quick"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replaces the models of the cases with tiny ones, and lists those that were built. The second is unavailable."""
    calls: list[tuple[str, str]] = []

    def build(case: MethodCase, dtype: str, seed: int) -> tuple[PreTrainedModel, Mapping[str, Tensor]]:
        calls.append((case.name, dtype))
        if case.name == "bert":
            raise ConfigError("the weights of bert are not installed")
        model = tiny_model("llama").to(methods.DTYPES[dtype])
        return model, batch(model)

    monkeypatch.setattr(methods, "build_case", build)
    monkeypatch.setattr(methods, "COMPARED", FEW)
    monkeypatch.setattr(methods, "CURVE_NAMES", ("silu",))
    monkeypatch.setattr(methods, "DRAWS", {True: 1 << 10, False: 1 << 10})
    return calls


def run(folder: Path, *, quick: bool = True) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=200)
    path = methods.run(folder, quick, console, COMMAND)
    content: dict[str, Any] = read_json(path)
    return content, console.file.getvalue()  # type: ignore[attr-defined]


def test_measures_every_method_and_says_what_is_not_to_be_had(tmp_path: Path, built: list[tuple[str, str]]) -> None:
    content, text = run(tmp_path / "new")
    assert content["complete"]
    assert content["command"] == COMMAND
    assert {"environment", "settings"} <= content.keys()
    entries = {(each["model"], each["dtype"], each["method"]): each for each in content["gradients"]}
    assert len(entries) == 2 * 2 * len(FEW)
    assert entries["llama", "fp32", "recompute"]["identical"]
    assert entries["llama", "fp32", "recompute"]["kept_bytes"] < entries["llama", "fp32", "plain"]["kept_bytes"]
    assert 0 < entries["llama", "fp32", "few-bit-3"]["cosine_distance"] < 0.05
    assert entries["bert", "bf16", "plain"] == {
        **{"model": "bert", "dtype": "bf16", "method": "plain"},
        "unavailable": "the weights of bert are not installed",
    }
    assert "tiny BERT, bf16, plain: not available: the weights of bert are not installed" in text
    assert (tmp_path / "new" / "methods-llama.png").stat().st_size > 10_000
    assert not (tmp_path / "new" / "methods-bert.png").exists()


def test_continues_where_it_was_interrupted(
    tmp_path: Path, built: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, done = methods._measure, []

    def cut(*args: Any) -> dict[str, Any]:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(args)
        return measure(*args)

    monkeypatch.setattr(methods, "_measure", cut)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    before = read_json(tmp_path / methods.FILE)
    assert not before["complete"]
    assert len(before["gradients"]) == 5
    monkeypatch.setattr(methods, "_measure", measure)
    content, text = run(tmp_path)
    assert "entries with the same settings are kept" in text
    assert content["gradients"][:5] == before["gradients"]
    assert content["complete"]
    again, _ = run(tmp_path)
    assert again["gradients"] == content["gradients"]
    assert built.count(("llama", "fp32")) == 1
    assert built.count(("bert", "bf16")) == 2


def test_starts_over_with_other_settings_and_never_replaces_a_full_measurement(
    tmp_path: Path, built: list[tuple[str, str]]
) -> None:
    run(tmp_path)
    content = read_json(tmp_path / methods.FILE)
    write_json(tmp_path / methods.FILE, {**content, "settings": {**content["settings"], "seed": 7}})
    assert "starting over" in run(tmp_path)[1]
    write_json(tmp_path / methods.FILE, {**content, "settings": {**content["settings"], "quick": False}})
    with pytest.raises(ConfigError, match="full measurement"):
        run(tmp_path)


ENTRY = {"loss": 2.0, "kept_bytes": 8 << 20, "intermediate_units": 4.0, "cosine_distance": 0.0, "relative_error": 0.0}
ENTRY |= {"identical": True, "non_finite": 0.0}
RESULTS: dict[str, Any] = {
    "command": COMMAND,
    "complete": True,
    "environment": {"processor": "a processor", "device": "cpu", "threads": 2, "torch": "2.13", "transformers": "5.23"},
    "settings": {
        "seed": 3,
        "draws": 1024,
        "dtypes": ["fp32", "bf16"],
        "curves": ["silu"],
        "methods": {
            "plain": {"title": "plain", "source": "", "exact": True},
            "recompute": {"title": "activation recomputed", "source": "", "exact": True},
            "few-bit-3": {"title": "derivative in 3 bits", "source": "a paper", "exact": False},
            "published": {"title": "published formulas", "source": "a paper", "exact": False},
        },
        "models": [{"name": "llama", "title": "a Llama"}, {"name": "bert", "title": "a BERT"}],
    },
    "derivatives": [
        {"curve": "silu", "dtype": "fp32", "method": "plain", "rms": 1e-8, "max": 2e-8, "bias": 0.0, "non_finite": 0.0},
        {
            "curve": "silu",
            "dtype": "bf16",
            "method": "published",
            "rms": 0.1,
            "max": 0.2,
            "bias": 1e-4,
            "non_finite": 0.01,
        },
        {"curve": "silu", "dtype": "fp32", "method": "published", "unavailable": "no formula"},
    ],
    "gradients": [
        {"model": "llama", "dtype": "fp32", "method": "plain", **ENTRY},
        {
            "model": "llama",
            "dtype": "fp32",
            "method": "recompute",
            **ENTRY,
            "kept_bytes": 6 << 20,
            "intermediate_units": 2.0,
        },
        {
            **{"model": "llama", "dtype": "fp32", "method": "few-bit-3", **ENTRY, "kept_bytes": 7 << 20},
            **{"cosine_distance": 0.0012, "relative_error": 0.05, "identical": False},
        },
        {"model": "llama", "dtype": "bf16", "method": "plain", **ENTRY},
        {
            **{"model": "llama", "dtype": "bf16", "method": "published", **ENTRY},
            **{"cosine_distance": None, "relative_error": None, "identical": False, "non_finite": 0.98},
        },
        {"model": "bert", "dtype": "fp32", "method": "plain", "unavailable": "not installed"},
    ],
}


def test_tables_show_each_number_and_invent_none() -> None:
    text = methods_tables.section(RESULTS)
    lines = text.splitlines()
    assert "| plain | 4.00 I | 8.0 MiB | identical | 0 | 4.00 I | 8.0 MiB | identical | 0 |" in lines
    assert "| activation recomputed | 2.00 I | -25.0% | identical | 0 | - | - | - | - |" in lines
    assert "| derivative in 3 bits | 4.00 I | -12.5% | 1.2e-03 | 5.0e-02 | - | - | - | - |" in lines
    assert "| published formulas | - | - | - | - | 4.00 I | 8.0 MiB | NaN (98%) | NaN |" in lines
    assert "| plain | 1.0e-08 / 2.0e-08 / +0e+00 | - |" in lines
    assert "| published formulas | - | 1.0e-01 / 2.0e-01 / +1e-04, NaN: 1.00% |" in lines
    assert "- bert: not installed." in lines
    assert "- published, silu: no formula." in lines
    assert f"by `{COMMAND}`" in text
    assert "a BERT" not in text
    assert "cut" not in text
    assert "was interrupted" in methods_tables.section({**RESULTS, "complete": False})


def test_tables_come_from_the_file_alone() -> None:
    assert methods_tables.section(json.loads(json.dumps(RESULTS))) == methods_tables.section(RESULTS)


def test_plot_has_a_point_for_each_method_exact_and_broken_ones_too() -> None:
    figures = methods_plots.figures(RESULTS)
    assert list(figures) == ["llama"]
    first, second = figures["llama"].axes
    assert sorted(text.get_text() for text in first.texts) == ["few-bit-3", "plain", "recompute"]
    assert sorted(text.get_text() for text in second.texts) == ["plain", "published"]
    assert "identical" in [label.get_text() for label in first.get_yticklabels()]
    assert "NaN" in [label.get_text() for label in second.get_yticklabels()]
    for axes in (first, second):
        points = [height for line in axes.lines for height in line.get_ydata()]
        assert len(points) == len(axes.texts)
        assert all(0 < height < 1 for height in points)


def test_labels_are_moved_apart_and_stay_inside() -> None:
    rows = methods_plots._spread([0.05, 0.05, 0.5, 0.97, 0.98, 0.99])
    assert all(after - before >= methods_plots.ROW - 1e-9 for before, after in pairwise(rows))
    assert rows[0] == 0.05
    assert rows[2] == 0.5
    assert rows[-1] <= 1


@pytest.mark.parametrize("case", [case for case in CASES if case.config], ids=lambda case: case.name)
def test_configs_of_the_cases_exist(case: MethodCase) -> None:
    assert (CONFIGS / case.config).is_file()
