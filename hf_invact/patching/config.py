"""What to patch, and how."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..ops import AUTO, check_backend
from .plans import AUTO_PLAN, PLANS

AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class InvActConfig:
    """Options of `patch_model`. It checks itself when it is made.

    Attributes:
        include: patterns (as in a shell: ``*``, ``?``, ``[abc]``) of block names to patch, e.g. ``("*.mlp",)``.
        exclude: patterns of block names to leave alone.
        plan: what is kept. "auto" measures each kind of block and takes what keeps least (the exact one of equals, the
            unpatched block if nothing keeps less); "gate-inputs", "input", "gate-output" and "output" demand that one.
        backend: what computes the operation: "auto" (by device) or a backend's name.
        autocast_dtype: under which training will run ("bfloat16" and "float16" are understood too); None takes the
            autocast that is active when `patch_model` is called, if any. The callback fills it in.
        require: refuse a model in which no activation would be inverted, where `patch_model` would only report why. (A
            plan that is demanded is always required at one site at least.)

    Raises:
        ValueError: an unknown plan, backend or dtype, patterns that are not strings, or a `require` that is no boolean.

    >>> InvActConfig.from_dict({"include": ["*.mlp"], "backend": "eager"})
    InvActConfig(include=('*.mlp',), exclude=(), plan='auto', backend='eager', autocast_dtype=None, require=False)
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    plan: str = AUTO_PLAN
    backend: str = AUTO
    autocast_dtype: torch.dtype | None = None
    require: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, (list, tuple))
            if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError(f"{name} must be a list of patterns such as ['*.mlp'], got {patterns!r}")
            object.__setattr__(self, name, tuple(patterns))
        if self.plan != AUTO_PLAN and self.plan not in PLANS:
            raise ValueError(f"unknown plan {self.plan!r}; known: {', '.join([AUTO_PLAN, *PLANS])}")
        if isinstance(self.autocast_dtype, str) and self.autocast_dtype in AUTOCAST_DTYPES:
            object.__setattr__(self, "autocast_dtype", AUTOCAST_DTYPES[self.autocast_dtype])
        if self.autocast_dtype not in (None, *AUTOCAST_DTYPES.values()):
            known = ", ".join(AUTOCAST_DTYPES)
            raise ValueError(f"autocast_dtype must be one of {known} or null, got {self.autocast_dtype!r}")
        if not isinstance(self.backend, str):
            raise ValueError(f"backend must be the name of a backend, got {self.backend!r}")
        check_backend(self.backend)
        if not isinstance(self.require, bool):
            raise ValueError(f"require must be true or false, got {self.require!r}")

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
