"""What is raised inside of patching; users get a `PatchingError`."""

from __future__ import annotations


class NoProbeError(Exception):
    """Why a block cannot be run by itself."""
