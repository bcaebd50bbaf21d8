"""Runs in their own processes: their result, their progress, and how their end is reported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from experiments.common.errors import ConfigError, RunFailed
from experiments.common.files import read_json
from experiments.compare import workers
from experiments.compare.workers import run_in_process
from tests.experiments.small import alive_after, write_config


def ignore(done: int, total: int) -> None:
    pass


def worker() -> int:
    """The process id of the worker that runs now."""
    (process,) = multiprocessing.active_children()
    assert process.pid is not None
    return process.pid


def argv(folder: Path, **changes) -> list[str]:
    return [str(write_config(folder, max_steps=3, **changes))]


def test_progress_and_results_of_a_run(tmp_path, capfd):
    steps, processes = [], set()

    def progress(done, total):
        steps.append((done, total))
        processes.add(worker())

    assert run_in_process("finetune", argv(tmp_path), tmp_path / "log", progress) is None
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert len(processes - {os.getpid()}) == 1
    assert len(read_json(tmp_path / "run/run.json")["loss"]) == 3
    assert "eval_loss" in (tmp_path / "log").read_text()  # what it printed
    assert capfd.readouterr() == ("", "")
    assert multiprocessing.active_children() == []


def test_the_result_is_returned(tmp_path):
    result = run_in_process("step time", argv(tmp_path), tmp_path / "log", ignore)
    assert result.keys() == {"ratio", "low", "high", "pairs"}
    assert result["low"] <= result["ratio"] <= result["high"]


def test_each_job_has_its_own_process(tmp_path):
    processes = []
    for name in ("a", "b"):
        run_in_process("finetune", argv(tmp_path / name), tmp_path / "log", lambda *_: processes.append(worker()))
    assert len(set(processes)) == 2


def test_a_config_error_passes(tmp_path):
    with pytest.raises(ConfigError, match=r"train_file='missing\.txt' does not exist"):
        run_in_process("finetune", argv(tmp_path, train_file="missing.txt"), tmp_path / "log", ignore)


def test_nothing_to_invert_is_a_config_error(tmp_path):
    arguments = [*argv(tmp_path), "--use_inverted_activations", "--model_config", '{"activation_function": "relu"}']
    arguments += ["--inverted_activations_config", '{"sites": ["activation"]}']
    with pytest.raises(ConfigError, match="nothing to invert"):
        run_in_process("finetune", arguments, tmp_path / "log", ignore)


def test_an_error_names_the_log_which_has_the_traceback(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(RunFailed, match=f"TypeError: .*nope.*; the whole output is in {log}"):
        run_in_process("finetune", argv(tmp_path, lr_scheduler_kwargs={"nope": 1}), log, ignore)
    assert "Traceback" in log.read_text()
    assert multiprocessing.active_children() == []


def test_a_killed_process_is_reported(tmp_path):
    with pytest.raises(RunFailed, match=f"the process was killed; its output is in {tmp_path / 'log'}"):
        run_in_process("finetune", argv(tmp_path), tmp_path / "log", lambda *_: os.kill(worker(), signal.SIGKILL))
    assert not (tmp_path / "run/run.json").exists()
    assert multiprocessing.active_children() == []


def test_an_interruption_ends_the_process_too(tmp_path):
    processes = []

    def interrupt(done, total):
        processes.append(psutil.Process(worker()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_process("finetune", argv(tmp_path), tmp_path / "log", interrupt)
    assert alive_after(processes, 0) == []
    assert not (tmp_path / "run/run.json").exists()


def test_the_process_leaves_when_its_parent_is_killed(tmp_path, monkeypatch):
    fork = multiprocessing.get_context("fork")  # it inherits the job below
    receiver, sender = fork.Pipe(duplex=False)

    def wait(argv, sender):
        sender.send(os.getpid())
        time.sleep(60)

    def run_it():
        fork.Process(target=workers._work, args=("wait", [], tmp_path / "log", sender)).start()

    monkeypatch.setitem(workers.JOBS, "wait", wait)
    parent = fork.Process(target=run_it)
    parent.start()
    process = psutil.Process(receiver.recv())
    parent.kill()
    parent.join()
    assert alive_after([process], 2) == []


def test_a_run_may_have_processes_that_load_its_data(tmp_path):
    loading = {"dataloader_num_workers": 1, "dataloader_multiprocessing_context": "fork"}
    run_in_process("finetune", argv(tmp_path, **loading), tmp_path / "log", ignore)
    assert (tmp_path / "run/run.json").exists()
