"""The outcome of a training with inverted activations, as one line and as a file."""

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
_COMPUTED = "computed from the measurement of the first step and the saving per token of each site"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one training.

    Attributes:
        report: what was patched.
        checkpointed: names of the recomputed modules, which save nothing in the forward pass.
        saved_bytes: bytes saved for the backward pass, measured in the first step; None if not measured.
        tokens: by site, the tokens that its block processed in that step (see `SiteCalls`).
        peaks: peak memory of the CUDA devices in bytes, if any.
    """

    report: PatchReport
    checkpointed: tuple[str, ...] = ()
    saved_bytes: int | None = None
    tokens: Mapping[str, int | None] = field(default_factory=dict)
    peaks: Mapping[str, int] = field(default_factory=dict)

    @property
    def plain_saved_bytes(self) -> int | None:
        """What the unpatched model would have saved, computed; None if a site or its tokens were not measured."""
        if self.saved_bytes is None:
            return None
        total = self.saved_bytes
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
            path: of the file; None if it was not written.
        """
        parts = [f"inverted activations at the end: {self.report.patched} of {len(self.report.sites)} sites"]
        if self.saved_bytes is None:
            parts.append("what is kept for the backward pass was not measured")
        else:
            plain = "unknown" if self.plain_saved_bytes is None else f"{size(self.plain_saved_bytes)}, computed"
            parts.append(f"kept for the backward pass in the first step: {size(self.saved_bytes)} (without: {plain})")
        if "peak_cuda_allocated_bytes" in self.peaks:
            parts.append(f"peak CUDA memory: {size(self.peaks['peak_cuda_allocated_bytes'])}")
        if path is not None:
            parts.append(f"why, site by site: {path}")
        return "; ".join(parts)

    def as_json(self) -> dict[str, Any]:
        """The outcome for a JSON file; sizes in bytes."""
        return {
            "summary": self.report.summary(self.checkpointed),
            "sites_patched": self.report.patched,
            "sites_found": len(self.report.sites),
            "saved_bytes_per_token": self.report.saved_bytes_per_token,
            "gradient_checkpointing": bool(self.checkpointed),
            "saved_activation_bytes": self.saved_bytes,
            "saved_activation_bytes_plain": self.plain_saved_bytes,
            "saved_activation_bytes_plain_is": None if self.plain_saved_bytes is None else _COMPUTED,
            **self.peaks,
            "sites": [
                {**dataclasses.asdict(site), "tokens_in_first_step": self.tokens.get(site.name)}
                for site in self.report.sites
            ],
        }

    def write(self, folder: str) -> Path:
        """Write the file into a folder atomically.

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
