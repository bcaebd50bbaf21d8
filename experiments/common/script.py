"""Starts a script: an error that its user can fix ends it with one line and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

INSTALL = "pip install . -r requirements-scripts.txt"
INTERRUPTED = 130  # the exit code that shells give Ctrl-C
# Errors of the disk and the folders, not of the program.
_DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


def start(module: str, main: str = "main") -> int:
    """Import a module, and call its `main` with the arguments of the command line.

    Returns:
        The exit code: that of `main`; 2, after one line, if a file cannot be read or written; 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2, after one line, if a package is not installed.
    """
    try:
        with missing_packages_named():
            imported = import_module(module)
        code: int = getattr(imported, main)(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = error.filename2 or error.filename or "a file"
        print(f"error: {where} cannot be read or written ({error.strerror})", file=sys.stderr)
        return 2
    return code


@contextmanager
def missing_packages_named() -> Iterator[None]:
    """Imports inside of the context end the script with one line if a package is not installed.

    Raises:
        SystemExit: with code 2, if a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not _is_a_package(error.name):
            raise
        command = f"in the folder of this project, run: {INSTALL}"
        print(f"error: the package {error.name} is not installed; {command}", file=sys.stderr)
        raise SystemExit(2) from error


def _is_a_package(module: str) -> bool:
    """Whether a missing module is a package to install: neither a part of one, nor of Python's standard library."""
    return "." not in module and module not in sys.stdlib_module_names
