"""Runs a script as ``python`` would."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from .flags import USE, Flags, refuse, take_flags
from .trainers import Seen, flags_understood

USAGE = """\
usage: hf-invact run SCRIPT.py [ARGUMENTS ...]
       hf-invact run -m MODULE [ARGUMENTS ...]

Start an unmodified training script that uses transformers.Trainer, or a subclass of it, with two more flags, anywhere
among its own arguments:

  --use_inverted_activations [true|false]
                        train each model with inverted activations
  --inverted_activations_config JSON
                        options, e.g. '{"include": ["*.mlp"], "exclude": [], "plan": "auto", "backend": "eager"}'

Without the flag it is `python SCRIPT.py ARGUMENTS ...`. The exit code is the script's own; 2 where the flags or the
script's name are wrong. In several processes: accelerate launch -m hf_invact run SCRIPT.py ...
"""


def main(arguments: Sequence[str]) -> int:
    """Run a script. What it raises is passed on, `SystemExit` included.

    Args:
        arguments: the script, its arguments, and the flags among them.

    Raises:
        SystemExit: the flags or the script's name are wrong; code 2.
    """
    flags, rest = take_flags(arguments)
    if rest[:1] in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    is_module = rest[:1] == ["-m"]
    target, *own = rest[is_module:] or [""]
    if not target:
        refuse(f"which {'module' if is_module else 'script'}? See hf-invact run --help")
    if target.startswith("-"):
        refuse(f"unknown option {target} before the script; the script's own options come after its name")
    with nullcontext(Seen()) if flags.use is None else flags_understood(flags) as seen:
        try:
            (_run_module if is_module else _run_file)(target, own)
        except SystemExit as ended:
            if not ended.code:
                _warn(flags, seen)
            raise
    _warn(flags, seen)
    return 0


def _run_file(path: str, arguments: list[str]) -> None:
    if not os.path.exists(path):
        refuse(f"there is no script {path}")
    sys.argv = [path, *arguments]
    _set_first_path(os.path.dirname(os.path.realpath(path)))
    runpy.run_path(os.path.abspath(path), run_name="__main__")


def _run_module(name: str, arguments: list[str]) -> None:
    sys.argv = [name, *arguments]
    _set_first_path(os.getcwd())
    if not _module_exists(name):
        refuse(f"there is no module {name}")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):  # python -P, since 3.11
        sys.path[0] = folder


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return False
        raise  # a package around it needs something else


def _warn(flags: Flags, seen: Seen) -> None:
    """A flag that did nothing is told, once per machine; what the script achieved stands, and so does its exit code."""
    if flags.use and not seen.trained and os.environ.get("LOCAL_RANK", "0") == "0":
        what = "made a Trainer that never trained" if seen.made else "made no transformers.Trainer in this process"
        print(f"hf-invact run: warning: {USE} changed nothing, because the script {what}", file=sys.stderr)
