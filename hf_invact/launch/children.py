"""Passes the flags to the processes that a script starts: other commands, launchers, spawned workers.

An environment variable holds the flags, and a ``sitecustomize`` on PYTHONPATH applies them in each Python process. The
processes record events in a shared folder, which the process that made it removes.
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

from .events import TrainerEvents
from .flags import Flags
from .importing import replace_attribute
from .trainers import flags_applied

VARIABLE = "HF_INVACT_RUN"
_CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child")
_inherited_changes = ExitStack()


@contextmanager
def flags_applied_everywhere(flags: Flags) -> Iterator[TrainerEvents]:
    """As `flags_applied`, and also in the processes that are started inside the block, and in their children."""
    _inherited_changes.close()  # the flags of an outer `hf-invact run`
    outer = _inherited()
    folder = outer["folder"] if outer else tempfile.mkdtemp(prefix="hf-invact-run-")
    owner = outer["owner"] if outer else os.getpid()
    message = json.dumps({"flags": dataclasses.asdict(flags), "folder": folder, "owner": owner})
    before = dict(os.environ)
    try:
        with ExitStack() as changes:
            os.environ.update(_variables(message, os.environ))
            _pass_to_children(message, changes)
            yield changes.enter_context(flags_applied(flags, TrainerEvents(folder)))
    finally:
        for name in (VARIABLE, "PYTHONPATH"):
            _restore(name, before)
        _remove(folder, owner)


def apply_inherited_flags() -> None:
    """Apply the flags in this process, if a script under ``hf-invact run`` has started it."""
    inherited = _inherited()
    if inherited is None:
        return
    flags, events = Flags(**inherited["flags"]), TrainerEvents(inherited["folder"])
    _inherited_changes.enter_context(flags_applied(flags, events))
    _pass_to_children(os.environ[VARIABLE], _inherited_changes)
    if inherited["owner"] == os.getpid():  # exec has replaced the command itself, so nothing else reports
        end = functools.partial(_end, flags, events)
        atexit.register(end)
        _inherited_changes.callback(atexit.unregister, end)


def _end(flags: Flags, events: TrainerEvents) -> None:
    if getattr(sys, "last_value", None) is None:
        events.report(flags)
    shutil.rmtree(events.folder or "", ignore_errors=True)


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of it
        shutil.rmtree(folder, ignore_errors=True)


def _pass_to_children(message: str, changes: ExitStack) -> None:
    """Have every way of starting a process pass the flags on, also with an environment of the script's own."""

    def with_flags(environment: Mapping[str, str] | None) -> Mapping[str, str] | None:
        variables = os.environ if environment is None else environment
        added = _variables(message, variables)
        is_complete = all(variables.get(name) == value for name, value in added.items())
        return environment if is_complete else {**variables, **added}

    original: Any = subprocess.Popen.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(self, *args, **kwargs).arguments
        _warn_if_isolated(arguments["args"])
        original(**{**arguments, "env": with_flags(arguments.get("env"))})

    replace_attribute(changes, subprocess.Popen, "__init__", __init__)
    for name in ("execve", "posix_spawn", "posix_spawnp"):  # the variants that search PATH call these
        if hasattr(os, name):
            replace_attribute(changes, os, name, _with_environment(getattr(os, name), with_flags))


def _with_environment(original: Any, with_flags: Any) -> Any:
    @functools.wraps(original)
    def start(path: Any, argv: Sequence[Any], env: Mapping[str, str], **kwargs: Any) -> Any:
        _warn_if_isolated(argv)
        return original(path, argv, with_flags(env), **kwargs)

    return start


def _warn_if_isolated(argv: Any) -> None:
    """Warn about a process that the flags cannot reach: ``python -I``, ``-E`` and ``-S`` read no sitecustomize."""
    words = argv if isinstance(argv, (list, tuple)) else []
    program, *rest = [str(word) for word in words] or [""]
    if not os.path.basename(program).startswith("python"):
        return
    for option in rest:
        if not option.startswith("-") or option in ("-c", "-m"):
            return
        if not option.startswith("--") and set(option) & set("IES"):
            print(
                f"hf-invact run: warning: `{os.path.basename(program)} {option}` ignores the environment, so nothing "
                "is inverted there. Leave the option out, or start the process as: python -m hf_invact run ...",
                file=sys.stderr,
            )
            return


def _inherited() -> dict[str, Any] | None:
    message = os.environ.get(VARIABLE)
    if message is None:
        return None
    values: dict[str, Any] = json.loads(message)
    return values if os.path.isdir(values["folder"]) else None


def _variables(message: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a process needs to apply the flags, in place of those in its environment."""
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    others = [path for path in paths if path and path != _CHILD]
    return {VARIABLE: message, "PYTHONPATH": os.pathsep.join([_CHILD, *others])}


def _restore(name: str, before: Mapping[str, str]) -> None:
    if name in before:
        os.environ[name] = before[name]
    else:
        os.environ.pop(name, None)
