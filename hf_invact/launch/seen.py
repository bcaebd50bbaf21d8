"""What became of the flag, in this process and in those that the script starts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

from .flags import USE, Flags

MADE, TRAINED, INVERTED = "made", "trained", "inverted"


@dataclass
class Seen:
    """What happened to the Trainers of the script.

    Attributes:
        folder: where its processes, forked ones included, tell each other; None for this process alone.
        counts: how often it happened in this process: a Trainer was made, trained, or trained with something inverted.
    """

    folder: str | None = None
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys((MADE, TRAINED, INVERTED), 0))

    def note(self, what: str) -> None:
        """It happened in this process."""
        self.counts[what] += 1
        if self.folder is not None and os.path.isdir(self.folder):  # the command may have ended before a child
            with open(os.path.join(self.folder, what), "w"):
                pass

    def happened(self, what: str) -> bool:
        """Whether it happened in any process."""
        return bool(self.counts[what]) or (self.folder is not None and os.path.exists(os.path.join(self.folder, what)))

    def tell(self, flags: Flags) -> int:
        """Say where the flag changed nothing, once per machine. The exit code: 1 where that is an error."""
        if not flags.use or self.happened(INVERTED):
            return 0
        if os.environ.get("LOCAL_RANK", "0") == "0":
            kind = "error" if flags.require else "warning"
            print(f"hf-invact run: {kind}: {USE} changed nothing, because {self._why()}", file=sys.stderr)
        return int(flags.require)

    def _why(self) -> str:
        if self.happened(TRAINED):
            return "nothing was inverted in the training (its line above says why)"
        if self.happened(MADE):
            return "the script made a Trainer that never trained"
        return (
            "neither the script nor a Python process that it started made a transformers.Trainer. Another training "
            "loop can call hf_invact.patch_model(model); a process elsewhere is started as: python -m hf_invact run ..."
        )
