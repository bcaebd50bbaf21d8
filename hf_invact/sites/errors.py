"""What is raised where a model cannot be patched."""

from __future__ import annotations


class PatchingError(ValueError):
    """The model, or a part of it that was asked for, cannot be patched.

    The model is as it was before the call, unless the message says what of it could not be put back.
    """
