"""The flag applies in the processes that a script starts, however it starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_invact.launch import main
from hf_invact.launch.children import VARIABLE
from hf_invact.launch.flags import CONFIG, REQUIRE, USE
from tests.launch.test_script import TRAINS, command, own_interpreter, write  # noqa: F401 (a fixture)

REPORTS_FLAG = """
import sys
print(any(type(finder).__module__ == "hf_invact.launch.importing" for finder in sys.meta_path))
print({"torch", "transformers", "numpy"} & set(sys.modules))
"""
APPLIED = "True\nset()\n"
PATCHED = "inverted activations: 7 of 7 sites patched"
RUNS = "import os, subprocess, sys\n"
CLEARED = f"env={{'PATH': os.environ['PATH'], 'PYTHONPATH': {str(Path(__file__).parents[2])!r}}}"
STARTS = {
    "subprocess": "sys.exit(subprocess.run([sys.executable, 'child.py']).returncode)",
    "a shell": "subprocess.check_call(f'{sys.executable} child.py', shell=True)",
    "exec": "os.execv(sys.executable, [sys.executable, 'child.py'])",
    "exec, found on PATH": "os.execvpe(sys.executable, [sys.executable, 'child.py'], os.environ)",
    "spawn": "os.spawnv(os.P_WAIT, sys.executable, [sys.executable, 'child.py'])",
    "posix_spawn": "os.waitpid(os.posix_spawn(sys.executable, [sys.executable, 'child.py'], {**os.environ}), 0)",
    "its own environment": f"subprocess.run([sys.executable, 'child.py'], {CLEARED})",
    "exec, its own environment": f"os.execvpe(sys.executable, [sys.executable, 'child.py'], {CLEARED[4:]})",
    "a changed environment": (
        "os.environ['PYTHONPATH'] = os.environ['PYTHONPATH'].rpartition(os.pathsep)[2]\n"
        "subprocess.run([sys.executable, 'child.py'])"
    ),
    "a process of a process": (
        "program = \"import subprocess, sys; subprocess.run([sys.executable, 'child.py'])\"\n"
        "subprocess.run([sys.executable, '-c', program])"
    ),
}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_flag_applies_in_a_python_process_that_a_script_starts(start: str) -> None:
    write(REPORTS_FLAG, "child.py")
    ended = command(write(RUNS + start), USE)
    assert (ended.returncode, ended.stdout) == (0, APPLIED), ended.stderr


@pytest.mark.parametrize(("flag", "applied"), [([], False), ([USE, "false"], True)], ids=["absent", "off"])
def test_where_it_is_absent_nothing_is_done(flag: list[str], applied: bool) -> None:
    write(REPORTS_FLAG, "child.py")
    ended = command(write(RUNS + STARTS["subprocess"]), *flag)
    assert ended.stdout.splitlines()[0] == str(applied)
    assert ended.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["subprocess", "exec, its own environment"])
def test_a_process_trains_with_the_options_that_were_given(start: str) -> None:
    write(TRAINS, "child.py")
    ended = command(write(RUNS + STARTS[start]), USE, REQUIRE, CONFIG, '{"exclude": ["*.0.mlp"]}')
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("6 of 7 sites patched") == 1, ended.stderr
    assert own_lines(ended.stderr) == []


def own_lines(printed: str) -> list[str]:
    """The lines printed by the command itself."""
    return [line for line in printed.splitlines() if line.startswith("hf-invact run: ")]


WORKERS = """
from transformers import TrainingArguments
from tests.models import tiny_model
from tests.trainer.helpers import arguments, make_trainer

def train(*given):
    make_trainer(tiny_model("llama"), arguments("out", TrainingArguments, max_steps=1)).train()

if __name__ == "__main__":
    START
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "start",
    [
        "from accelerate import debug_launcher; debug_launcher(train, num_processes=2)",
        "import torch; torch.multiprocessing.spawn(train, nprocs=1)",
        "import multiprocessing as m; p = m.get_context('forkserver').Process(target=train); p.start(); p.join()",
    ],
    ids=["forked", "spawned", "from a server"],
)
def test_workers_are_trained_inverted_and_the_command_knows(start: str) -> None:
    ended = command(write(WORKERS.replace("START", start)), USE)
    assert ended.returncode == 0, ended.stderr
    assert PATCHED in ended.stderr
    assert own_lines(ended.stderr) == []


def test_a_process_without_a_trainer_is_reported_once() -> None:
    write("", "child.py")
    for start in ("subprocess", "exec", "a process of a process"):
        ended = command(write(RUNS + STARTS[start]), USE)
        (line,) = own_lines(ended.stderr)
        assert "neither the script nor a Python process that it started made a transformers.Trainer" in line
        assert ended.returncode == 0
    ended = command(write(RUNS + STARTS["subprocess"]), USE, REQUIRE)
    assert ended.returncode == 1
    assert f"hf-invact run: error: {USE} changed nothing" in ended.stderr


def test_a_process_that_the_flag_cannot_reach_is_warned_about_at_once() -> None:
    write("print('the child')", "child.py")
    ended = command(write(RUNS + "subprocess.run([sys.executable, '-I', 'child.py'], stdout=2)"), USE)
    warning, child, _ = ended.stderr.splitlines()
    assert warning.startswith("hf-invact run: warning: `python")
    assert "-I` ignores the environment, so nothing is inverted there" in warning
    assert warning.endswith("start the process as: python -m hf_invact run ...")
    assert child == "the child"


def test_the_environment_and_the_ways_to_start_are_restored() -> None:
    def ways() -> list[object]:
        return [subprocess.Popen.__init__, os.execve, os.posix_spawn, os.environ.get("PYTHONPATH")]

    before = ways()
    script = write("import os; open('seen', 'w').write(os.environ['HF_INVACT_RUN'])")
    main([script, USE])
    assert ways() == before
    assert VARIABLE not in os.environ
    assert '"use": true' in Path("seen").read_text()
    folder = Path("seen").read_text().partition('"folder": "')[2].partition('"')[0]
    assert not Path(folder).exists()


def test_another_sitecustomize_is_imported_as_well(tmp_path: Path) -> None:
    write("print('the other one')", "own/sitecustomize.py")
    write("import sys; print('sitecustomize', sys.modules['sitecustomize'].__file__, sys.path[:3])", "child.py")
    script = write(RUNS + STARTS["subprocess"])
    plain, inverted = (
        subprocess.run(
            [sys.executable, *before, script, *after],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "own"), str(Path(__file__).parents[2])])},
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        for before, after in (([], []), (["-m", "hf_invact", "run"], [USE]))
    )
    assert "the other one" in plain
    assert plain == inverted


@pytest.mark.slow
def test_a_command_within_the_command_causes_no_false_warning() -> None:
    write(TRAINS, "child.py")
    start = f"subprocess.run([sys.executable, '-m', 'hf_invact', 'run', 'child.py', '{USE}'])"
    ended = command(write(RUNS + start), USE)
    assert ended.stderr.count(PATCHED) == 1
    assert own_lines(ended.stderr) == []
