"""The error that a user of the scripts can mend: shown as one line, without a traceback."""

from __future__ import annotations

from .masking import masked_text


class ConfigError(ValueError):
    """Something the user gave (a key, a file, a folder, a name) cannot be used. The message says what to do."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()  # messages of libraries that it quotes may have several
        return masked_text(" ".join(line.strip() for line in lines if line.strip()))
