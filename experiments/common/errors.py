"""The error that a user of the scripts can fix: shown as one line, without a traceback."""

from __future__ import annotations

from .masking import masked_text


class ConfigError(ValueError):
    """Something the user gave (a key, a file, a folder, a name) cannot be used. The message says what to do."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()  # it may quote a library's message of several lines
        return masked_text(" ".join(line.strip() for line in lines if line.strip()))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
