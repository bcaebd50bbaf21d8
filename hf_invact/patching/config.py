"""What to patch, and how."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..ops import AUTO, check_backend


@dataclass(frozen=True)
class InvActConfig:
    """Options of `patch_model`. It checks itself when it is made.

    Attributes:
        include: patterns (as in a shell: ``*``, ``?``, ``[abc]``) of block names to patch, e.g. ``("*.mlp",)``.
        exclude: patterns of block names to leave alone.
        backend: what computes the operation: "auto" (by device) or a backend's name.

    Raises:
        ValueError: an unknown backend, or patterns that are not strings.

    >>> InvActConfig.from_dict({"include": ["*.mlp"], "backend": "eager"})
    InvActConfig(include=('*.mlp',), exclude=(), backend='eager')
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    backend: str = AUTO

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, (list, tuple))
            if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError(f"{name} must be a list of patterns such as ['*.mlp'], got {patterns!r}")
            object.__setattr__(self, name, tuple(patterns))
        if not isinstance(self.backend, str):
            raise ValueError(f"backend must be the name of a backend, got {self.backend!r}")
        check_backend(self.backend)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InvActConfig:
        """From a mapping, as `--inverted_activations_config` gives it.

        Raises:
            ValueError: an unknown key (the message lists the known ones), or a value that is refused.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise ValueError(f"unknown option {key!r} of inverted activations{hint}; known: {', '.join(known)}")
        return cls(**values)
