"""Records whether the flag took effect, in this process and in those that the script starts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from .flags import USE, Flags

MADE, TRAINED, INVERTED = "made", "trained", "inverted"


@dataclass
class TrainerEvents:
    """What the Trainers of a script did.

    Attributes:
        folder: holds a file for each kind of event, shared by all processes of the script; None for this process alone.
        counts: events in this process: a Trainer was made, trained, or trained with something inverted.
    """

    folder: str | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((MADE, TRAINED, INVERTED), 0))

    def record(self, event: str) -> None:
        """Count an event of this process, and make it known to the others."""
        self.counts[event] += 1
        if self.folder is not None and os.path.isdir(self.folder):  # a child may outlive the command
            with open(os.path.join(self.folder, event), "w"):
                pass

    def happened(self, event: str) -> bool:
        """Whether it happened in any process."""
        return bool(self.counts[event]) or (
            self.folder is not None and os.path.exists(os.path.join(self.folder, event))
        )

    def report(self, flags: Flags) -> int:
        """Print a line, once per machine, if the flag changed nothing. Returns the exit code: 1 if that is an error."""
        if not flags.use or self.happened(INVERTED):
            return 0
        if os.environ.get("LOCAL_RANK", "0") == "0":
            kind = "error" if flags.require else "warning"
            print(f"hf-invact run: {kind}: {USE} changed nothing, because {self._reason()}", file=sys.stderr)
        return int(flags.require)

    def _reason(self) -> str:
        if self.happened(TRAINED):
            return "nothing was inverted in the training (its line above says why)"
        if self.happened(MADE):
            return "the script made a Trainer that never trained"
        return (
            "neither the script nor a Python process that it started made a transformers.Trainer. With another "
            "training loop, call hf_invact.patch_model(model); start processes on other machines as: "
            "python -m hf_invact run ..."
        )
