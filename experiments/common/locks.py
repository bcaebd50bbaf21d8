"""Keeps two runs from writing into one folder at once."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import ConfigError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]  # Windows has none

LOCK = ".lock"
_ATTEMPTS, _PAUSE = 20, 0.05  # seconds: a run that was killed may need a moment to end

logger = logging.getLogger(__name__)

_held: set[int] = set()


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create a folder, and keep all other runs out of it until the context ends.

    If several processes train one model together, the first one holds the lock. A folder that was created here and is
    still empty at the end is removed.

    Raises:
        ConfigError: another run holds it.
    """
    if not is_first_process():
        yield
        return
    with locked(folder / LOCK, f"the output folder {folder}", "--output_dir"):
        yield


@contextlib.contextmanager
def locked(path: Path, what: str, option: str) -> Iterator[None]:
    """Hold the lock on a file. The file and its missing folders are created, and removed afterwards if they are empty.

    The operating system releases the lock when the process ends, even if it is killed.

    Args:
        what: names what is locked, for the message.
        option: the command-line option that chooses another one.

    Raises:
        ConfigError: another process holds it.
    """
    made, owner, handle = [folder for folder in path.parents if not folder.exists()], os.getpid(), None
    try:
        handle = _acquire(path, what, option)
        yield
    finally:
        if os.getpid() == owner:  # not in a process that was forked inside of the context
            if handle is not None:
                _release(path, handle)
            _remove_while_empty(made)


def is_first_process() -> bool:
    """Whether this is the first of the processes that train together, or trains alone."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _acquire(path: Path, what: str, option: str) -> int:
    holder = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(_PAUSE if attempt else 0.0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last holder has just removed the folder
            continue
        if not _take(handle, path):
            holder = os.read(handle, 200).decode(errors="replace")
        elif _is_at(path, handle):  # otherwise its last holder has just removed the file
            _held.add(handle)
            os.ftruncate(handle, 0)
            with contextlib.suppress(OSError):  # the disk is full; the text is only for the message below
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
            return handle
        os.close(handle)
    raise ConfigError(
        f"{what} is in use: {holder or 'another process'} writes into it; wait for it to end, or choose another "
        f"{option}"
    )


def _release(path: Path, handle: int) -> None:
    _held.remove(handle)
    if fcntl is not None and _is_at(path, handle):
        path.unlink()
    os.close(handle)


def _remove_while_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it holds something
            return


def _take(handle: int, path: Path) -> bool:
    """Take the lock. Returns False if another process holds it; True also where locks do not exist."""
    if fcntl is None:
        logger.warning("%s cannot be locked on this system: do not start a second run there", path.parent)
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): do not start a second run there", path.parent, error.strerror)
    return True


def _is_at(path: Path, handle: int) -> bool:
    """Whether the open file is still the one at that path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def _close_inherited() -> None:
    """In a forked process: close the locks that it inherited. Otherwise they would last until both processes end."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_close_inherited)
