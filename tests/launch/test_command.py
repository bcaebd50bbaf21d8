"""The command with real training scripts, in one and in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_invact.launch.flags import CONFIG, USE

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parent / "scripts"
TRAIN, WORKERS = (str(SCRIPTS / name) for name in ("train.py", "workers.py"))
OPTIONS = [
    *("--use_cpu", "true", "--max_steps", "3", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2"),
    *("--logging_steps", "1", "--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"),
    "--output_dir",
]

RUN = ["-m", "hf_invact", "run"]
ACCELERATE = ["-m", "accelerate.commands.accelerate_cli", "launch", "--cpu"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
GLOO = ["--ddp_backend", "gloo"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parents[2])}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def train(folder: Path, before: list[str], after: list[str]) -> list[dict[str, Any]]:
    """What the script saw in each process."""
    folder.mkdir()
    ended = python(*before, TRAIN, *OPTIONS, str(folder), *after)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("7 of 7 sites patched") == (USE in after)
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen-*.json"))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("plain") / "python", [], [])


@pytest.mark.parametrize(
    ("launched", "options"),
    [(RUN, []), ([*ACCELERATE, *RUN], [CONFIG, '{"backend": "eager"}'])],
    ids=["hf-invact run", "accelerate launch"],
)
def test_a_script_keeps_less_and_learns_the_same(
    launched: list[str], options: list[str], plain: list[dict[str, Any]], tmp_path: Path
) -> None:
    (one,), (other,) = plain, train(tmp_path / "inverted", launched, [*options, USE])
    check(one, other, processes=1)


def test_in_two_processes_as_well(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", TORCHRUN, GLOO)
    inverted = train(tmp_path / "inverted", [*TORCHRUN, *RUN], [*GLOO, USE])
    assert len(plain) == len(inverted) == 2
    for one, other in zip(plain, inverted, strict=True):
        check(one, other, processes=2)


def check(plain: dict[str, Any], inverted: dict[str, Any], processes: int) -> None:
    assert plain["world_size"] == inverted["world_size"] == processes
    assert inverted["kept"] < 0.8 * plain["kept"]
    assert inverted["logs"][0]["loss"] == plain["logs"][0]["loss"]
    for name in ("loss", "grad_norm"):
        values = [[entry[name] for entry in seen["logs"]] for seen in (inverted, plain)]
        assert len(values[0]) == 3
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert [entry["saved_activation_bytes"] for entry in inverted["logs"]] == [inverted["kept"]] * 3
    assert "saved_activation_bytes" not in plain["logs"][0]
    assert not any(argument.startswith((USE, CONFIG)) for argument in inverted["argv"])


def test_data_may_come_from_other_processes(tmp_path: Path) -> None:
    ended = python(*RUN, WORKERS, str(tmp_path), USE)
    assert ended.returncode == 0, ended.stderr
    assert "4 of 4 sites patched" in ended.stderr
