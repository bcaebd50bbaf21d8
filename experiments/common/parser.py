"""A command-line parser that reports an error in one line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from .errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Raises `ConfigError` instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)
