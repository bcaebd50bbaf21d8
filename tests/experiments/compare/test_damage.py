"""Damaged folders of results: one line, with advice that works."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.compare import command as compare
from experiments.compare.workers import run_in_process
from experiments.finetuning import run as finetune
from experiments.finetuning.arguments import parse_run
from tests.experiments.small import contents, write_config
from tests.helpers import threads


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config and the output of a finished run. To be copied."""
    folder = tmp_path_factory.mktemp("trained")
    finetune.finetune(parse_run([str(config(folder))]))
    return folder


def config(folder: Path, **changes: Any) -> Path:
    return write_config(folder, "llama", **{"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **changes})


@pytest.fixture
def unfinished(trained: Path, tmp_path: Path) -> Path:
    """The output of a run that was stopped after step 2."""
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoint-4")
    return tmp_path / "run"


def run(trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit code, and the line of the error."""
    capsys.readouterr()
    code = finetune.main([str(trained / "config.yaml"), "--output_dir", str(folder)])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == (code != 0)
    return code, lines[0] if lines else ""


@pytest.mark.parametrize("content", ["null", "[]", "{}", "3", '{"model": {}, "data": {}, "training": 1}', "{", None])
def test_settings_that_are_damaged(trained, unfinished, capsys, content):
    path = unfinished / "settings.json"
    path.unlink()
    path.mkdir() if content is None else path.write_text(content)
    before = contents(unfinished)
    code, error = run(trained, unfinished, capsys)
    assert code == 2
    assert re.fullmatch(f"error: {path} is damaged .*; remove the folder {unfinished} to start over, or .*", error)
    assert contents(unfinished) == before
    shutil.rmtree(unfinished)
    assert run(trained, unfinished, capsys)[0] == 0


def test_a_checkpoint_that_is_damaged_gives_way_to_an_older_one(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained / "run", folder)
    (folder / "run.json").unlink()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / "checkpoint-4" / name).write_bytes((folder / "checkpoint-4" / name).read_bytes()[:100])
    assert run(trained, folder, capsys)[0] == 0
    assert (
        json.loads((folder / "run.json").read_text())["loss"]
        == json.loads((trained / "run/run.json").read_text())["loss"]
    )


def test_a_comparison_shows_that_a_checkpoint_was_skipped(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained / "run", folder)
    (folder / "run.json").unlink()
    (folder / "checkpoint-4/model.safetensors").write_bytes(b"cut")
    argv = [str(trained / "config.yaml"), "--output_dir", str(folder)]
    run_in_process("finetune", argv, tmp_path / "log", lambda done, total: None)
    line = f"warning: skipping a damaged checkpoint: {folder / 'checkpoint-4'}: model.safetensors cannot be read"
    assert line in capsys.readouterr().err


def test_every_checkpoint_is_damaged(trained, unfinished, capsys):
    (unfinished / "checkpoint-2/optimizer.pt").write_bytes(b"")
    before = contents(unfinished)
    code, error = run(trained, unfinished, capsys)
    assert code == 2
    assert "checkpoint-2: optimizer.pt cannot be read" in error
    assert contents(unfinished) == before
    shutil.rmtree(unfinished / "checkpoint-2")  # as advised
    assert run(trained, unfinished, capsys)[0] == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (None, "Is a directory"),
        ("null", "NoneType"),
        ("[]", "list"),
        ("{}", "its 'settings' is None"),
        ({"settings": {}}, "its settings have no 'model'"),
        ({"loss": None}, "its 'loss' is None"),
        ({"loss": [{"step": 1}]}, "its losses hold {'step': 1}"),
        ({"eval": {"eval_loss": None}}, "its 'eval_loss' is None"),
    ],
    ids=str,
)
def test_a_result_that_is_damaged(trained, tmp_path, capsys, change, what):
    config(tmp_path)
    folder = tmp_path / "out/runs/config-plain-seed0"
    shutil.copytree(trained / "run", folder)
    (tmp_path / "out/plan.json").write_text("{}")
    path = folder / "run.json"
    content = json.loads(path.read_text())
    path.unlink()
    if change is None:
        path.mkdir()
    else:
        path.write_text(change if isinstance(change, str) else json.dumps({**content, **change}))
    before = contents(tmp_path)
    assert compare.main([str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "out"), "--seeds", "0"]) == 2
    message = f"error: {path} is damaged (*{what}*); remove the folder {folder} to start over, or *\n"
    assert re.fullmatch(re.escape(message).replace(r"\*", ".*"), capsys.readouterr().err)
    assert contents(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.system(f"mount -t tmpfs -o size=1200k tmpfs '{folder}' 2>/dev/null"):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    os.system(f"umount '{folder}'")


def test_a_full_disk_and_then_room(trained, small_disk, capsys):
    filler = small_disk / "filler"
    room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    for left in (50_000, 250_000, 600_000):  # for settings, for weights, and for one checkpoint
        filler.write_bytes(bytes(room - left))
        code, error = run(trained, small_disk / "run", capsys)
        assert code == 2
        assert (
            "cannot be written: the disk is full; free some space, and run the same command again to continue" in error
        )
        filler.unlink()
    assert not (small_disk / "run/run.json").exists()
    shutil.copytree(small_disk / "run", trained / "moved")
    assert run(trained, trained / "moved", capsys)[0] == 0
