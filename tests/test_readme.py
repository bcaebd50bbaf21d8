"""The README's code runs as it stands, and its tables are those of the committed results."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_invact import patch_model
from hf_invact.memory import SavedActivations
from tests.models import batch, tiny_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINER, WITHOUT_A_TRAINER = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_in_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = "--use_inverted_activations --max_steps 1 --use_cpu --report_to none --disable_tqdm true --output_dir"
    monkeypatch.setattr(sys, "argv", ["train.py", *options.split(), str(tmp_path)])
    model = tiny_model("llama")
    records = [{name: values[0] for name, values in batch(model).items()}] * 8
    names = run(TRAINER, model=model, dataset=records)
    (callback,) = (entry for entry in names["trainer"].callback_handler.callbacks if hasattr(entry, "report"))
    assert callback.report.patched == 7


def test_without_a_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model("bert")
    names = run(WITHOUT_A_TRAINER, model=model, batch=batch(model))
    assert "7 of 9 sites patched" in capsys.readouterr().out
    with SavedActivations(model) as plain:
        model(**batch(model))
    assert names["saved"].total_bytes == plain.total_bytes


def test_its_results_are_the_committed_ones() -> None:
    rendered = runpy.run_path(str(ROOT / "scripts" / "render_results.py"))["render"]()
    assert rendered == README


def test_the_files_that_it_names_exist() -> None:
    found = re.findall(r"`((?:configs|scripts)/[\w./-]+)`|\]\(([\w./-]+)\)", README)
    paths = {code or link for code, link in found}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_what_scripts_print_is_what_the_page_shows() -> None:
    page = (ROOT / "docs" / "scripts.md").read_text(encoding="utf-8")
    assert f"\n{patch_model(tiny_model('llama')).summary()}\n" in page
