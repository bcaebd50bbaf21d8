"""Errors that the scripts show as one line, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

from .masking import masked_text

Options = ParamSpec("Options")
Main = Callable[Concatenate[Sequence[str], Options], int]


class ConfigError(ValueError):
    """Something the user gave (a key, a file, a folder, a name) cannot be used. The message says what to do."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()  # it may quote a library's message of several lines
        return masked_text(" ".join(line.strip() for line in lines if line.strip()))


class RunFailed(RuntimeError):
    """A worker process ended with an error. The message says where its output is."""


def shown_as_one_line(main: Main[Options]) -> Main[Options]:
    """A script's `main` that returns 2, after one line, for a `ConfigError`, and 1 for a `RunFailed`.

    >>> @shown_as_one_line
    ... def main(argv):
    ...     raise ConfigError("--steps must be at least 1, got 0")
    >>> main([])
    2
    """

    @wraps(main)
    def shown(argv: Sequence[str], *args: Options.args, **options: Options.kwargs) -> int:
        try:
            return main(argv, *args, **options)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except RunFailed as error:
            print(f"error: {error}\nRun the same command again to continue.", file=sys.stderr)
            return 1

    return shown


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
