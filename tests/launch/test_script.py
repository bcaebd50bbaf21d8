"""A script runs as with ``python``, and the command reports whether the flag took effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hf_invact import PatchingError
from hf_invact.launch import main
from hf_invact.launch.flags import USE

ROOT = Path(__file__).parents[2]

ABOUT = """
import json, os, sys
main = sys.modules["__main__"]
about = {"argv": sys.argv[1:], "name": sys.argv[0], "main": __name__, "path": sys.path[0], "file": __file__,
         "itself": vars(main) is globals(), "modules": sorted(sys.modules)}
with open("about.json", "w") as file:
    json.dump(about, file)
"""
MAKES_NONE = "import argparse; argparse.ArgumentParser().parse_args()"
NEVER_TRAINS = """
from transformers import Trainer
from tests.models import tiny_model
Trainer(tiny_model("llama"))
"""
TRAINS = """
from transformers import Trainer, TrainingArguments
from tests.models import tiny_model
from tests.trainer.helpers import arguments, make_trainer
make_trainer(tiny_model("llama"), arguments("out", TrainingArguments, max_steps=1)).train()
"""
TRAINS_PLAIN = """
from tests.models import tiny_model
from tests.trainer.helpers import arguments, make_trainer
model = tiny_model("gpt2", activation="gelu_pytorch_tanh")
for layer in model.transformer.h:
    layer.mlp.c_proj.requires_grad_(False)
config = {"sites": ["activation"]}
make_trainer(model, arguments("out", max_steps=1, inverted_activations_config=config)).train()
"""


@pytest.fixture(autouse=True)
def own_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores what a script changes in its process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


def write(text: str, path: str = "train.py") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return path


def warnings(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if "warning" in line]


def about() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("about.json").read_text())
    return found


@pytest.mark.parametrize("flag", [[], [USE], [USE, "false"]], ids=" ".join)
def test_a_script_finds_what_python_gives_it(flag: list[str], tmp_path: Path) -> None:
    script = write(ABOUT, "below/train.py")
    assert main([script, "a", *flag, "--b", "c d"]) == 0
    found = about()
    assert found["argv"] == ["a", "--b", "c d"]
    assert (Path(found["name"]).name, found["main"], found["itself"]) == ("train.py", "__main__", True)
    assert found["path"] == str((tmp_path / "below").resolve())
    assert found["file"] == str(tmp_path / "below" / "train.py")


def test_a_link_to_a_script_imports_from_the_scripts_own_folder(tmp_path: Path) -> None:
    write(ABOUT, "below/train.py")
    Path("link.py").symlink_to(tmp_path / "below" / "train.py")
    main(["link.py"])
    assert about()["path"] == str((tmp_path / "below").resolve())


@pytest.mark.parametrize("name", ["package.train", "package"])
def test_a_module_finds_what_python_gives_it(name: str, tmp_path: Path) -> None:
    for path in ("__init__", "train", "__main__"):
        write(ABOUT if path != "__init__" else "", f"package/{path}.py")
    assert main(["-m", name, "a", USE]) == 0
    found = about()
    file = tmp_path / "package" / ("train.py" if name == "package.train" else "__main__.py")
    assert (found["argv"], found["main"], found["itself"]) == (["a"], "__main__", True)
    assert (found["path"], found["file"], found["name"]) == (str(tmp_path), str(file), str(file))
    for module in [module for module in sys.modules if module.partition(".")[0] == "package"]:
        del sys.modules[module]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("raise ValueError('of the script')", ValueError),
        ("raise KeyboardInterrupt", KeyboardInterrupt),
        ("import sys; sys.exit(3)", SystemExit),
        ("import sys; sys.exit('sorry')", SystemExit),
    ],
)
def test_what_a_script_raises_is_passed_on_without_a_warning(
    text: str, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error) as raised:
        main([write(text), USE])
    assert raised.traceback[-1].path == Path("train.py").absolute()
    assert warnings(capsys.readouterr().err) == []
    if isinstance(raised.value, SystemExit):
        assert raised.value.code in (3, "sorry")


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (MAKES_NONE, "neither the script nor a Python process that it started made a transformers.Trainer. "),
        (f"{MAKES_NONE}; raise SystemExit", "neither the script nor a Python process that it started made a "),
        (NEVER_TRAINS, "the script made a Trainer that never trained"),
        (TRAINS_PLAIN, "nothing was inverted in the training (its line above says why)"),
        (TRAINS, None),
    ],
    ids=["no Trainer", "exit code 0", "never trains", "nothing keeps less", "trains"],
)
@pytest.mark.parametrize("flag", [[], [USE, "false"], [USE]], ids=" ".join)
def test_a_flag_that_does_nothing_is_told(
    flag: list[str], text: str, warning: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        main([write(text), *flag])
    told = warnings(capsys.readouterr().err)
    assert len(told) == (warning is not None and flag == [USE])
    assert all(line.startswith(f"hf-invact run: warning: {USE} changed nothing, because {warning}") for line in told)


def test_of_several_processes_one_tells_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("LOCAL_RANK", rank)
        main([write(MAKES_NONE), USE])
    assert len(warnings(capsys.readouterr().err)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.py"], "no script or command named missing.py"),
        (["-m", "no_such_module"], "no module named no_such_module"),
        (["-m", "json.no_such_module"], "no module named json.no_such_module"),
        ([], "which script? See hf-invact run --help"),
        ([USE], "which script?"),
        (["-m"], "which module?"),
        (["--bf16", "train.py"], "unknown option --bf16 before the script"),
        (["train.py", USE, USE], f"{USE} is given twice"),
        (["--require", "train.py"], f"--require needs {USE} as well"),
        (["no_such_command"], "no script or command named no_such_command"),
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-invact run: ")
    assert message in line


def test_a_module_that_lacks_another_one_keeps_its_traceback() -> None:
    write("import no_such_module", "around/__init__.py")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        main(["-m", "around.train"])


@pytest.mark.parametrize("text", [MAKES_NONE, NEVER_TRAINS, f"{MAKES_NONE}; raise SystemExit"])
def test_where_it_is_required_a_flag_that_does_nothing_is_an_error(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--require", write(text), USE]) == 1
    assert f"hf-invact run: error: {USE} changed nothing" in capsys.readouterr().err


def test_where_it_is_required_a_model_in_which_nothing_keeps_less_is_refused() -> None:
    with pytest.raises(PatchingError, match=r"require=True: .*nothing would keep less"):
        main([write(TRAINS_PLAIN), USE, "--require"])
    assert main([write(TRAINS), USE, "--require"]) == 0


COMMANDS = {
    "Python": (f"#!{sys.executable}\nimport sys; print(__name__, sys.argv[1:])", "__main__ ['a']"),
    "Python, a long path": (
        f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''\nimport sys; print(sys.argv[1:])",
        "['a']",
    ),
    "a shell": (f"#!/bin/sh\necho shell $@; exec {sys.executable} child.py", "shell a\nTrue"),
}


@pytest.mark.parametrize(("text", "printed"), COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("is_on_path", [True, False], ids=["on PATH", "by its path"])
def test_a_command_that_is_installed_runs(
    text: str, printed: str, is_on_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("import os; print('HF_INVACT_RUN' in os.environ)", "child.py")
    Path(write(text, "bin/mine")).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    ended = command("mine" if is_on_path else "bin/mine", USE, "a")
    assert (ended.returncode, ended.stdout) == (0, f"{printed}\n"), ended.stderr


def test_a_program_ends_as_it_would() -> None:
    assert command("sh", "-c", "exit 3", USE).returncode == 3
    assert command("sh", "-c", "kill -TERM $$", USE).returncode == 128 + 15
    ended = command(write("#!/bin/sh\n", "not_executable"), USE)
    assert (ended.returncode, ended.stderr) == (2, "hf-invact run: not_executable cannot be run: Permission denied\n")


def test_help_names_all_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert USE in printed
    assert "--inverted_activations_config JSON" in printed
    assert "--require" in printed


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "hf_invact", "run", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("flag", [[], [USE]], ids=["absent", "given"])
def test_nothing_is_imported_before_the_script(flag: list[str]) -> None:
    ended = command(write(ABOUT), *flag)
    assert ended.returncode == 0, ended.stderr
    assert not {"torch", "transformers", "numpy", "huggingface_hub"} & set(about()["modules"])


@pytest.mark.parametrize(
    ("text", "code", "last_line"),
    [
        ("raise ValueError('of the script')", 1, "ValueError: of the script"),
        ("raise KeyboardInterrupt", -2, "KeyboardInterrupt"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('sorry')", 1, "sorry"),
    ],
)
def test_the_process_ends_as_the_script_does(text: str, code: int, last_line: str) -> None:
    ended = command(write(f"def function():\n    {text}\n\nfunction()\n"), USE)
    assert ended.returncode == code
    assert (ended.stderr.splitlines() or [""])[-1] == last_line
    if "raise" in text:
        assert f'train.py", line 2, in function\n    {text}\n' in ended.stderr


SPAWNS = """
import multiprocessing, sys

def double(number):
    return 2 * number, __name__, sys.argv[1:]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(double, [1]))
"""


def test_a_spawned_process_finds_the_script() -> None:
    ended = command(write(SPAWNS), USE, "a")
    assert ended.stdout == "[(2, '__mp_main__', ['a'])]\n", ended.stderr
