"""Has the flags survive in the processes that a script starts: other commands, launchers, spawned workers.

They are in an environment variable, and a ``sitecustomize`` on PYTHONPATH reads them in each Python process. The
folder in which the processes tell what they did belongs to the one that has made it.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .flags import Flags
from .importing import replace_attribute
from .seen import Seen
from .trainers import flags_understood

VARIABLE = "HF_INVACT_RUN"
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child")
_joined = ExitStack()


@contextmanager
def flags_understood_everywhere(flags: Flags) -> Iterator[Seen]:
    """As `flags_understood`, and in the processes that are started inside the block, and in theirs."""
    _joined.close()  # what the command said that has started this process
    outer = _inherited()
    folder = outer["folder"] if outer else tempfile.mkdtemp(prefix="hf-invact-run-")
    owner = outer["owner"] if outer else os.getpid()
    told = json.dumps({"flags": dataclasses.asdict(flags), "folder": folder, "owner": owner})
    before = dict(os.environ)
    try:
        with ExitStack() as changes:
            os.environ.update(_with_flags(told, os.environ))
            _pass_on(told, changes)
            yield changes.enter_context(flags_understood(flags, Seen(folder)))
    finally:
        for name in (VARIABLE, "PYTHONPATH"):
            _restore(name, before)
        _remove(folder, owner)


def join() -> None:
    """Have the flags understood in this process, which a script under ``hf-invact run`` has started."""
    told = _inherited()
    if told is None:
        return
    flags, seen = Flags(**told["flags"]), Seen(told["folder"])
    _joined.enter_context(flags_understood(flags, seen))
    _pass_on(os.environ[VARIABLE], _joined)
    if told["owner"] == os.getpid():  # the script became another program (exec), and nothing else tells what it did
        end = functools.partial(_end, flags, seen)
        atexit.register(end)
        _joined.callback(atexit.unregister, end)


def _end(flags: Flags, seen: Seen) -> None:
    if getattr(sys, "last_value", None) is None:
        seen.tell(flags)
    shutil.rmtree(seen.folder or "", ignore_errors=True)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _pass_on(told: str, changes: ExitStack) -> None:
    """Put the flags into environments that a script makes for its processes."""

    def kept(environment: Mapping[str, str] | None) -> Mapping[str, str] | None:
        present = os.environ if environment is None else environment
        wanted = _with_flags(told, present)
        is_there = all(present.get(name) == value for name, value in wanted.items())
        return environment if is_there else {**present, **wanted}

    original: Any = subprocess.Popen.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        _tell_if_deaf(given["args"])
        original(**{**given, "env": kept(given.get("env"))})

    replace_attribute(changes, subprocess.Popen, "__init__", __init__)
    for name in ("execve", "posix_spawn", "posix_spawnp"):  # which those that find a program on PATH call
        if hasattr(os, name):
            replace_attribute(changes, os, name, _with_environment(getattr(os, name), kept))


def _with_environment(original: Any, kept: Any) -> Any:
    @functools.wraps(original)
    def start(path: Any, argv: Sequence[Any], env: Mapping[str, str], **kwargs: Any) -> Any:
        _tell_if_deaf(argv)
        return original(path, argv, kept(env), **kwargs)

    return start


def _tell_if_deaf(argv: Any) -> None:
    """Say at once where a process cannot hear the flags: ``python -I``, ``-E`` and ``-S`` read no sitecustomize."""
    words = argv if isinstance(argv, (list, tuple)) else []
    program, *rest = [str(word) for word in words] or [""]
    if not os.path.basename(program).startswith("python"):
        return
    for option in rest:
        if not option.startswith("-") or option in ("-c", "-m"):
            return
        if not option.startswith("--") and set(option) & set("IES"):
            print(
                f"hf-invact run: warning: `{os.path.basename(program)} {option}` reads no environment, so nothing is "
                "inverted in that process. Leave the option out, or start the process as: python -m hf_invact run ...",
                file=sys.stderr,
            )
            return


def _inherited() -> dict[str, Any] | None:
    told = os.environ.get(VARIABLE)
    if told is None:
        return None
    values: dict[str, Any] = json.loads(told)
    return values if os.path.isdir(values["folder"]) else None


def _with_flags(told: str, environment: Mapping[str, str]) -> dict[str, str]:
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    others = [path for path in paths if path and path != _CHILD]
    return {VARIABLE: told, "PYTHONPATH": os.pathsep.join([_CHILD, *others])}


def _restore(name: str, before: Mapping[str, str]) -> None:
    if name in before:
        os.environ[name] = before[name]
    else:
        os.environ.pop(name, None)
