"""Recognizes a full disk from the errors of the libraries that write to it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import ConfigError

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_BELOW = 2**14  # free bytes: PyTorch's writer does not say why it failed


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Raise the errors of a full disk as one `ConfigError`.

    Args:
        folder: the code inside of the context writes into it.

    Raises:
        ConfigError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if _is_full(error, folder):
            raise full_disk(folder) from error
        raise


def full_disk(path: Path) -> ConfigError:
    """The error for a file or folder that cannot be written because the disk is full."""
    return ConfigError(
        f"{path} cannot be written: the disk is full; free some space, and run the same command again to continue"
    )


def is_full(error: OSError) -> bool:
    """Whether an error says that the disk is full, or that the user's quota is used up."""
    return error.errno in _FULL_DISK


def _is_full(error: BaseException, folder: Path) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if (isinstance(chain, OSError) and is_full(chain)) or "No space left on device" in str(chain):
            return True
        chain = chain.__cause__ or chain.__context__
    is_writer = "PytorchStreamWriter" in str(error) or "inline_container" in str(error)
    return is_writer and shutil.disk_usage(folder).free < _FULL_BELOW
