"""The error that a user of a plan can mend."""

from __future__ import annotations


class PlanningError(ValueError):
    """A model cannot be planned as asked: what came, and what to do, in one line."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()  # messages of libraries that it quotes may have several
        return " ".join(line.strip() for line in lines if line.strip())
