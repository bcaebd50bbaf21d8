"""Two runs with the same folder, in real processes that are really killed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from experiments.benchmark.command import main as benchmark
from experiments.common.errors import ConfigError
from experiments.common.files import claim_folder
from experiments.common.locks import LOCK, locked, locked_folder
from experiments.compare.command import main as compare
from experiments.finetuning.run import main as finetune
from experiments.reproduce.command import main as reproduce
from tests.experiments.small import contents, own_lines, write_config

ROOT = Path(__file__).parents[3]
FORK = multiprocessing.get_context("fork")
IN_USE = "the output folder {} is in use: process {} on .* writes into it; .* --output_dir"


def hold(folder: Path, with_child: bool, sender: Connection) -> None:
    with locked_folder(folder):
        child = os.fork() if with_child else -1
        if child:
            sender.send(child)
        time.sleep(60)


class Holder:
    """Another process that holds the lock of a folder, perhaps with a child that outlives it."""

    def __init__(self, folder: Path, with_child: bool = False) -> None:
        receiver, sender = FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=hold, args=(folder, with_child, sender), daemon=True)
        self.process.start()
        self.child = receiver.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def held(tmp_path: Path):
    holder = Holder(tmp_path / "held")
    yield holder
    holder.kill()


def test_a_folder_in_use_is_refused_by_every_script_and_stays_as_it_is(tmp_path, held, capsys):
    config, folder = write_config(tmp_path), tmp_path / "held"
    before = contents(tmp_path)
    for main, options in ((compare, [str(config)]), (finetune, [str(config)]), (reproduce, ["memory", "--quick"])):
        assert main([*options, "--output_dir", str(folder)]) == 2
        message = IN_USE.format(folder, held.process.pid)
        assert re.fullmatch(f"error: {message}\n", capsys.readouterr().err)
    assert contents(tmp_path) == before


def test_a_file_of_measurements_in_use_is_refused(tmp_path, capsys):
    path = tmp_path / "new/benchmark.json"
    with locked(path.with_name(".benchmark.json.lock"), "it", "--output"):
        before = contents(tmp_path)
        assert benchmark(["--device", "cpu", "--quick", "--output", str(path)]) == 2
        assert contents(tmp_path) == before
    assert re.fullmatch(f"error: {path} is in use: process {os.getpid()} .* --output\n", capsys.readouterr().err)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a child that lives on"])
def test_a_killed_process_holds_nothing(tmp_path, with_child):
    holder = Holder(tmp_path / "run", with_child)
    with pytest.raises(ConfigError, match="is in use"), locked_folder(tmp_path / "run"):
        pass
    holder.kill()
    try:
        assert (tmp_path / "run" / LOCK).exists()  # a kill leaves no time to remove it
        claim_folder(tmp_path / "run", "settings.json")
        with locked_folder(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()
        assert contents(tmp_path) == {"run": "/"}
    finally:
        if with_child:
            os.kill(holder.child, signal.SIGKILL)


def test_what_was_made_and_stayed_empty_is_removed(tmp_path):
    with locked_folder(tmp_path / "a/b"):
        assert contents(tmp_path).keys() == {"a", "a/b", f"a/b/{LOCK}"}
    assert contents(tmp_path) == {}
    with locked_folder(tmp_path / "a/b"):
        (tmp_path / "a/result").touch()
    assert contents(tmp_path).keys() == {"a", "a/result"}


def count(folder: Path) -> None:
    for _ in range(20):
        with locked_folder(folder):
            number = int((folder / "count").read_text())
            time.sleep(0.001)
            (folder / "count").write_text(str(number + 1))


def test_many_that_want_it_at_once_take_turns(tmp_path):
    (tmp_path / "count").write_text("0")
    processes = [FORK.Process(target=count, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert contents(tmp_path).keys() == {"count"}
    assert (tmp_path / "count").read_text() == "60"


@pytest.mark.slow
def test_the_processes_of_one_training_share_a_folder(tmp_path):
    config = write_config(tmp_path, ddp_backend="gloo", max_steps=2, per_device_train_batch_size=1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, str(ROOT / "scripts/finetune.py"), str(config)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "run/run.json").exists()
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.slow
def test_of_two_comparisons_at_once_one_is_refused_and_the_other_ends(tmp_path):
    config = write_config(tmp_path, max_steps=2)
    command = [sys.executable, str(ROOT / "scripts/compare.py"), str(config), "--output_dir", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    first, second = (subprocess.Popen([*command, "--seeds", "0"], **pipes) for _ in range(2))
    deadline = time.monotonic() + 240
    errors = [process.communicate(timeout=deadline - time.monotonic())[1] for process in (first, second)]
    assert sorted([first.returncode, second.returncode]) == [0, 2], errors
    refused = errors[0] if first.returncode else errors[1]
    assert re.fullmatch("error: the output folder .* is in use: .*\n", own_lines(refused))
    assert (tmp_path / "out/report.html").exists()
