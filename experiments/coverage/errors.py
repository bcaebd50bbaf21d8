"""Why a model type is not covered."""

from __future__ import annotations

import re

LONGEST = 140


class UncoveredError(Exception):
    """A model type cannot be built small from its config alone, or cannot be run by itself."""


def brief(error: BaseException) -> str:
    """An error's message in one line, without the places of modules, and cut to `LONGEST` characters."""
    text = " ".join(re.sub(r"(<module '[^']*') from '[^']*'>", r"\1>", str(error)).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
