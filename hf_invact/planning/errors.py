"""The error that users of plans can fix."""

from __future__ import annotations


class PlanningError(ValueError):
    """A model cannot be planned as asked. The message says in one line what came and what to do."""

    def __str__(self) -> str:
        lines = super().__str__().splitlines()  # quoted messages of libraries may have several
        return " ".join(line.strip() for line in lines if line.strip())
