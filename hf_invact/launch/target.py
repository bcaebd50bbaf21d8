"""Finds the script, module or command, and runs it as ``python`` or the shell would."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence

from .flags import refuse


def run_module(name: str, arguments: Sequence[str]) -> None:
    """As ``python -m NAME``."""
    sys.argv = [name, *arguments]
    _set_first_path(os.getcwd())
    if not _module_exists(name):
        refuse(f"no module named {name}")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def run_script_or_command(name: str, arguments: Sequence[str]) -> None:
    """Run a script as ``python NAME``, or an installed command; in this process if it is written in Python.

    Raises:
        SystemExit: no such script or command; code 2.
    """
    path = name if os.path.exists(name) else shutil.which(name)
    if path is None:
        refuse(f"no script or command named {name}")
    if _is_python(path):
        sys.argv = [path, *arguments]
        _set_first_path(os.path.dirname(os.path.realpath(path)))
        runpy.run_path(os.path.abspath(path), run_name="__main__")
    else:
        raise SystemExit(_run_program(path, arguments))


def _is_python(path: str) -> bool:
    """Whether Python can run a file: a folder, an archive, or text without the name of another interpreter."""
    if os.path.isdir(path) or zipfile.is_zipfile(path):
        return True
    with open(path, "rb") as file:
        start = file.read(4096)
    if start.startswith(b"#!"):
        first, second = [*start.splitlines(), b""][:2]
        return b"python" in first or second.startswith(b"'''exec'")  # as pip writes it where the path is long
    return b"\0" not in start


def _run_program(path: str, arguments: Sequence[str]) -> int:
    """Run another program, to whose Python processes the flags apply. Signals are left to it."""
    try:
        process = subprocess.Popen([os.path.abspath(path), *arguments])
    except OSError as error:
        refuse(f"{path} cannot be run: {error.strerror}")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN), signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _set_first_path(folder: str) -> None:
    if not getattr(sys.flags, "safe_path", False):  # python -P, since 3.11
        sys.path[0] = folder


def _module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            return False
        raise  # its parent package failed to import something else
