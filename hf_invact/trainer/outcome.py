"""What inverted activations did to a training, in a line and as a file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..display.sizes import size
from ..patching import PatchReport

FILE = "inverted_activations.json"
_COMPUTED = "computed from what was measured in the first step, and what each site keeps less per token"


@dataclass(frozen=True)
class Outcome:
    """Of one training.

    Attributes:
        report: what was patched.
        checkpointed: names of the modules that were recomputed, which keep nothing until then.
        kept: bytes that the model kept for the backward pass, as measured in the first step; None where they were not.
        tokens: by site, what its block has seen meanwhile (see `Calls`).
        peaks: peak memory of CUDA devices in bytes, if any.
    """

    report: PatchReport
    checkpointed: tuple[str, ...] = ()
    kept: int | None = None
    tokens: Mapping[str, int | None] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept_plain(self) -> int | None:
        """What the model would have kept without: computed. None where a site or its tokens were not measured."""
        if self.kept is None:
            return None
        total = self.kept
        for site in self.report.sites:
            tokens = self.tokens.get(site.name, 0)
            if site.curve is None or tokens == 0 or any(site.name.startswith(f"{name}.") for name in self.checkpointed):
                continue
            if site.saved is None or tokens is None:
                return None
            total += site.saved * tokens
        return total

    def text(self, path: Path | None) -> str:
        """One line.

        Args:
            path: where it was written; None if it was not.
        """
        parts = [f"inverted activations at the end: {self.report.patched} of {len(self.report.sites)} sites"]
        if self.kept is None:
            parts.append("what was kept for the backward pass was not measured")
        else:
            plain = "not known" if self.kept_plain is None else f"{size(self.kept_plain)}, computed"
            parts.append(f"kept for the backward pass in the first step: {size(self.kept)} (without: {plain})")
        if "peak_cuda_allocated_bytes" in self.peaks:
            parts.append(f"peak CUDA memory: {size(self.peaks['peak_cuda_allocated_bytes'])}")
        if path is not None:
            parts.append(f"why, site by site: {path}")
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """The same for programs, all in bytes."""
        return {
            "summary": self.report.summary(self.checkpointed),
            "sites_patched": self.report.patched,
            "sites_found": len(self.report.sites),
            "saved_bytes_per_token": self.report.saved_bytes_per_token,
            "gradient_checkpointing": bool(self.checkpointed),
            "saved_activation_bytes": self.kept,
            "saved_activation_bytes_plain": self.kept_plain,
            "saved_activation_bytes_plain_is": None if self.kept_plain is None else _COMPUTED,
            **self.peaks,
            "sites": [
                {**dataclasses.asdict(site), "tokens_in_first_step": self.tokens.get(site.name)}
                for site in self.report.sites
            ],
        }

    def write(self, folder: str) -> Path:
        """Write the file into a folder, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        os.makedirs(folder, exist_ok=True)
        path = Path(folder, FILE)
        part = path.with_name(f"{FILE}.{os.getpid()}.part")
        try:
            part.write_text(json.dumps(self.as_json(), indent=2) + "\n", encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path
