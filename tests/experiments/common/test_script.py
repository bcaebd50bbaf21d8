"""How a script ends if a package is missing, a file cannot be written, or Ctrl-C is hit: an exit code and one line."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from experiments.common import script
from tests.experiments.small import own_lines, write_config
from tests.imports import imported_names

ROOT = Path(__file__).parents[3]
# Without the one that starts its measurements in other processes, and writes down what they lack.
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if path.stem != "device")
# These need only what the package brings.
INDEPENDENT = {"benchmark", "coverage", "fit_curves"}
MISSING = """
import contextlib, io, runpy, sys
from importlib.machinery import PathFinder

packages, scripts = (argument.split(",") for argument in sys.argv[1:])
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name in packages else find_spec(name, *where)
for script in scripts:
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.suppress(SystemExit):
        runpy.run_path(f"scripts/{script}.py", run_name="__main__")
    print(error.getvalue(), end="")
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module that a script starts."""
    module = ModuleType("started")
    monkeypatch.setitem(sys.modules, "started", module)
    return module


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a.json"),
            2,
            "error: a.json cannot be read or wr",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "x", None, "b"),
            2,
            "error: b cannot be read or wr",
        ),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to continue"),
    ],
    ids=["full", "folder", "interrupted"],
)
def test_errors_that_are_not_the_programs(module, capsys, error, code, message):
    def main(argv):
        raise error

    module.main = main
    assert script.start("started") == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("odd"), ModuleNotFoundError(name="hf_invact.nothing")])
def test_errors_of_the_program_keep_their_traceback(module, error):
    def main(argv):
        raise error

    module.main = main
    with pytest.raises(type(error)):
        script.start("started")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("packages", "scripts"),
    [("torch,numpy", SCRIPTS), ("datasets,evaluate,gguf,matplotlib,rich", sorted({*SCRIPTS} - INDEPENDENT))],
    ids=["none", "only the package's own"],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(packages, scripts):
    command = [sys.executable, "-c", MISSING, packages, ",".join(scripts)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    command = re.escape(script.INSTALL)
    line = rf"error: the package \w+ is not installed; in the folder of this project, run: {command}\n"
    assert re.fullmatch(f"({line}){{{len(scripts)}}}", own_lines(ended.stdout)), ended.stdout + ended.stderr


def test_the_command_names_a_file_with_all_packages():
    """Each package that the scripts import, and that hf_invact does not bring, is in the file."""
    lines = (ROOT / script.INSTALL.split()[-1]).read_text().splitlines()
    required = {Requirement(line.partition("#")[0]).name for line in lines if not line.startswith("#")}
    ours = {"experiments", "hf_invact", *sys.stdlib_module_names}
    sources = [path for part in ("experiments", "scripts") for path in (ROOT / part).rglob("*.py")]
    imported = {name.partition(".")[0] for path in sources for name in imported_names(path, ROOT)} - ours
    named = {name.lower() for module in imported for name in packages_distributions().get(module, [module])}
    brought = {*("torch", "transformers", "accelerate", "numpy", "safetensors", "tokenizers", "huggingface_hub")}
    assert named - brought == required


def _accept_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells turn it off for what they start in the background


@pytest.mark.slow
def test_an_interrupted_comparison_ends_with_one_line(tmp_path):
    config, out = write_config(tmp_path, max_steps=100_000), tmp_path / "out"
    command = [sys.executable, str(ROOT / "scripts/compare.py"), str(config), "--output_dir", str(out)]
    options = {"cwd": ROOT, "start_new_session": True, "preexec_fn": _accept_interrupts}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/settings.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, error = process.communicate(timeout=60)
    assert (process.returncode, own_lines(error)) == (130, "interrupted; run the same command again to continue\n")
