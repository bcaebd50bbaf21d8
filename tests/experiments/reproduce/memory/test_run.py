"""The whole part "memory": what it writes, keeps and prints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from experiments.reproduce.memory import run as memory
from experiments.reproduce.memory.cases import ACTIVATION, CASES, COMPILED, OURS, PLAIN, MemoryCase, MemoryVariant
from experiments.reproduce.memory.counting import Count
from experiments.reproduce.memory.plots import save_figures

COMMAND = "python scripts/reproduce.py memory --quick"
# One case with three variants, and one with its compiled one.
FEW = {
    key: (
        MemoryCase("bert", "BERT", "small", "BertModel", 1, 8, (PLAIN, ACTIVATION, OURS)),
        MemoryCase("llama", "Llama", "small", "LlamaForCausalLM", 1, 8, (PLAIN, COMPILED)),
    )
    for key in ("full", "quick")
}


class Counter:
    """Replaces the counting, and records how often it is called."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.interrupted: set[str] = set()

    def __call__(self, case: MemoryCase, variant: MemoryVariant) -> Count:
        name = f"{case.key} {variant.name}"
        if name in self.interrupted:
            raise KeyboardInterrupt
        self.asked.append(name)
        if name in self.failing:
            raise RuntimeError("no such graph\nand more")
        return Count({"activation": 3 << 20, "mlp": 1 << 20}, 7, {"output": 1} if variant.plan else {})


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter = Counter()
    monkeypatch.setattr(memory, "count", counter)
    monkeypatch.setattr(memory, "CASES", FEW)
    monkeypatch.setattr(memory, "save_figures", lambda *_: [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return counter


ALL = ["bert plain", "bert activation inverted", "bert ours", "llama plain", "llama torch.compile"]


def run(folder: Path, quick: bool = True) -> tuple[dict[str, Any], str]:
    console = Console(file=io.StringIO(), width=200)
    path = memory.run(folder, quick, console, COMMAND)
    assert path == folder / "memory.json"
    return json.loads(path.read_text()), console.file.getvalue()  # type: ignore[attr-defined]


def test_writes_all_entries_in_order_with_where_they_come_from(tmp_path: Path, counter: Counter) -> None:
    results, text = run(tmp_path / "new")
    assert results["command"] == COMMAND
    assert results["environment"]["torch"]
    assert results["settings"]["quick"] is True
    assert [f"{entry['case']} {entry['variant']}" for entry in results["entries"]] == ALL == counter.asked
    entry = results["entries"][1]
    assert (entry["kept_bytes"], entry["weights_bytes"], entry["plans"]) == (4 << 20, 7, {"output": 1})
    assert (entry["measured_bytes"], entry["measured_note"]) == (None, "not yet measured on a GPU")
    assert "5 of 5" in text
    assert "4.00 MiB" in text


def test_continues_where_it_was_interrupted(tmp_path: Path, counter: Counter) -> None:
    counter.interrupted = {"bert ours"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    counter.interrupted = set()
    results, text = run(tmp_path)
    assert counter.asked == ALL
    assert text.count("kept") == 2
    assert len(results["entries"]) == 5


def test_an_interruption_loses_nothing_that_comes_later(tmp_path: Path, counter: Counter) -> None:
    run(tmp_path)
    content = json.loads((tmp_path / "memory.json").read_text())
    del content["entries"][2], content["entries"][0]
    (tmp_path / "memory.json").write_text(json.dumps(content))
    counter.asked.clear()
    counter.interrupted = {"bert ours"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    counter.interrupted = set()
    results, _ = run(tmp_path)
    assert counter.asked == ["bert plain", "bert ours"]
    assert [f"{entry['case']} {entry['variant']}" for entry in results["entries"]] == ALL


def test_other_settings_start_over(tmp_path: Path, counter: Counter) -> None:
    run(tmp_path)
    _, text = run(tmp_path, quick=False)
    assert counter.asked == ALL * 2
    assert "starting over" in text


def test_other_versions_start_over(tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path)
    here = memory.describe_environment()
    monkeypatch.setattr(memory, "describe_environment", lambda: {**here, "torch": "9.9"})
    run(tmp_path)
    assert counter.asked == ALL * 2


def test_a_case_that_has_changed_is_counted_again(
    tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path)
    bert, llama = FEW["quick"]
    longer = MemoryCase("bert", "BERT", "small", "BertModel", 1, 16, bert.variants)
    monkeypatch.setattr(memory, "CASES", {"quick": (longer, llama)})
    counter.asked.clear()
    run(tmp_path)
    assert counter.asked == ALL[:3]


def test_what_cannot_be_compiled_is_reported_and_tried_again(tmp_path: Path, counter: Counter) -> None:
    counter.failing = {"llama torch.compile"}
    results, text = run(tmp_path)
    entry = results["entries"][-1]
    assert (entry["kept_bytes"], entry["reason"]) == (None, "not counted: RuntimeError: no such graph")
    assert "no such graph" in text
    counter.failing = set()
    counter.asked.clear()
    results, _ = run(tmp_path)
    assert counter.asked == ["llama torch.compile"]
    assert results["entries"][-1]["kept_bytes"] == 4 << 20


def test_what_must_be_counted_raises(tmp_path: Path, counter: Counter) -> None:
    counter.failing = {"llama plain"}
    with pytest.raises(RuntimeError, match="no such graph"):
        run(tmp_path)


def test_measures_where_there_is_a_gpu(tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(memory, "describe_environment", lambda: {"device": "a GPU", "torch": "1", "transformers": "1"})
    monkeypatch.setattr(memory, "measure_kept", lambda *_: {"measured_bytes": 5 << 20, "measured_note": None})
    results, text = run(tmp_path)
    measured = [f"{entry['case']} {entry['variant']}" for entry in results["entries"] if entry["measured_bytes"]]
    assert measured == ALL[:4]
    assert "measured 5.00 MiB" in text


def test_draws_each_case(tmp_path: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "save_figures", save_figures)
    run(tmp_path)
    for key in ("bert", "llama"):
        pixels = Image.open(tmp_path / f"memory-{key}.png").convert("L")
        assert pixels.crop((pixels.width - 3, 0, pixels.width, pixels.height)).getextrema() == (255, 255)


@pytest.mark.parametrize("effort", ["full", "quick"])
def test_cases_have_names_of_their_own_and_begin_plain(effort: str) -> None:
    cases = CASES[effort]
    assert len({case.key for case in cases}) == len(cases)
    assert all(case.variants[0] == PLAIN for case in cases)
    assert all(json.loads(json.dumps(case.inputs(PLAIN))) == case.inputs(PLAIN) for case in cases)
