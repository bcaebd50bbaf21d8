"""Starts a script: what its user can mend ends in one line and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

INTERRUPTED = 130  # as shells count it
# Of the extra "scripts", with what they bring.
_PACKAGES = ("datasets", "evaluate", "jinja2", "matplotlib", "peft", "yaml", "rich", "scipy", "PIL", "pyarrow")
# Of the disk and the folders, not of the program.
_ENVIRONMENT = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


def start(module: str, main: str = "main") -> int:
    """Import a module, and call its `main` with the arguments of the command line.

    Returns:
        The exit code: that of `main`; 2, after one line, where a package is missing or a file cannot be written; 130
        after Ctrl-C.
    """
    try:
        with missing_packages_named():
            imported = import_module(module)
        code: int = getattr(imported, main)(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        if error.errno not in _ENVIRONMENT:
            raise
        where = error.filename2 or error.filename or "a file"
        print(f"error: {where} cannot be read or written ({error.strerror})", file=sys.stderr)
        return 2
    return code


@contextmanager
def missing_packages_named() -> Iterator[None]:
    """Imports that end the script with one line where a package of the extra `scripts` is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package not in _PACKAGES:
            raise
        command = "in the folder of this project: pip install '.[scripts]'"
        print(f"error: the package {package} is not installed; {command}", file=sys.stderr)
        raise SystemExit(2) from error
