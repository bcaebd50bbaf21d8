"""What to patch, and how."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .. import sites
from ..ops import AUTO, check_backend
from ..sites import Plan, SiteKind
from .budget import parse_budget

AUTO_PLAN = "auto"
AUTOCAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class InvActConfig:
    """Options of `patch_model`. It checks itself when it is made.

    Attributes:
        include: patterns (as in a shell: ``*``, ``?``, ``[abc]``) of block names to patch, e.g. ``("*.mlp",)``.
        exclude: patterns of block names to leave alone.
        plan: what is saved for the backward pass. "auto" measures each kind of block and takes the plan that saves the
            fewest bytes (ties go to the exact plan; the block stays unpatched if no plan saves fewer). The name of a
            plan ("adapter-input", "gate-inputs", "input", "gate-output", "output", "norm-input" or "norm-output")
            demands it of all sites that can have it, whatever it saves; of several names, the one that saves the fewest
            bytes is taken. A name concerns the sites of its own kind alone: those of other kinds stay "auto".
        backend: what computes the operation: "auto" (by device) or a backend's name.
        autocast_dtype: under which training will run ("bfloat16" and "float16" are understood too); None takes the
            autocast that is active when `patch_model` is called, if any. The callback fills it in.
        require: refuse a model in which nothing would be patched, where `patch_model` would only report why. (A plan
            that is demanded is always required at one site at least.)
        sites: the kinds of sites to patch: "adapter" (the inputs of PEFT's LoRA, exact), "activation" and "norm". The
            paper's method alone is ``("activation",)``.
        memory_budget: what training may take of a device: "24GiB", "24GB", "90%", bytes, or "auto", all that is free.
            As few layers are checkpointed as are needed for that. A Trainer knows the batch that this depends on;
            without one, `hf_invact.plan_budget` tells which layers. None leaves checkpointing as it is.
        seq_len: the tokens of the longest sequence, for `memory_budget`; None asks the Trainer.
        checkpoint_layers: that number by hand: checkpoint so many layers, the first ones, and no other, even where
            gradient checkpointing is on. What they keep is freed, so they are not patched. None leaves checkpointing as
            it is.
        patch_checkpointed: patch checkpointed layers, too. This lowers the peak only where the layer that is being
            recomputed decides it.

    Raises:
        ValueError: an unknown plan, backend, dtype or kind of sites; plans of kinds that are left out alone;
            patterns that are not strings; a `require` or `patch_checkpointed` that is not a boolean; a
            `checkpoint_layers` that is no number of layers, or given beside a `memory_budget`; nonsense in that.

    >>> InvActConfig.from_dict({"include": ["*.mlp"], "backend": "eager"}).include
    ('*.mlp',)
    """

    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    plan: str | tuple[str, ...] = AUTO_PLAN
    backend: str = AUTO
    autocast_dtype: torch.dtype | None = None
    require: bool = False
    sites: tuple[str, ...] = field(default_factory=lambda: tuple(kind.name for kind in sites.KINDS))
    memory_budget: str | int | None = None
    seq_len: int | None = None
    checkpoint_layers: int | None = None
    patch_checkpointed: bool = False

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            is_list = isinstance(patterns, (list, tuple))
            if not is_list or not all(isinstance(pattern, str) for pattern in patterns):
                raise ValueError(f"{name} must be a list of patterns such as ['*.mlp'], got {patterns!r}")
            object.__setattr__(self, name, tuple(patterns))
        self._check_plan()
        self._check_sites()
        if isinstance(self.autocast_dtype, str) and self.autocast_dtype in AUTOCAST_DTYPES:
            object.__setattr__(self, "autocast_dtype", AUTOCAST_DTYPES[self.autocast_dtype])
        if self.autocast_dtype not in (None, *AUTOCAST_DTYPES.values()):
            known = ", ".join(AUTOCAST_DTYPES)
            raise ValueError(f"autocast_dtype must be one of {known} or null, got {self.autocast_dtype!r}")
        if not isinstance(self.backend, str):
            raise ValueError(f"backend must be the name of a backend, got {self.backend!r}")
        check_backend(self.backend)
        for name in ("require", "patch_checkpointed"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        self._check_checkpoints()

    def _check_checkpoints(self) -> None:
        count = self.checkpoint_layers
        for name, what, least in (("checkpoint_layers", "layers", 0), ("seq_len", "tokens", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a number of {what}, at least {least}, or null, got {value!r}")
        if self.memory_budget is not None:
            parse_budget(self.memory_budget)
            if count is not None:
                raise ValueError(
                    f"memory_budget={self.memory_budget!r} decides how many layers are checkpointed, and so does "
                    f"checkpoint_layers={count}: give one of the two"
                )

    @property
    def kinds(self) -> tuple[SiteKind[Any, Any], ...]:
        """The kinds of sites to patch, in the order in which they are decided."""
        return tuple(kind for kind in sites.KINDS if kind.name in self.sites)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that are demanded; none for "auto"."""
        return tuple(plan for kind in self.kinds for plan in self.demanded(kind))

    def demanded(self, kind: SiteKind[Any, Any]) -> tuple[Plan, ...]:
        """Those of one kind. None of them is demanded where this is empty."""
        names = (self.plan,) if isinstance(self.plan, str) else self.plan
        return tuple(plan for plan in kind.plans if plan.name in names)

    def _check_plan(self) -> None:
        names = (self.plan,) if isinstance(self.plan, str) else self.plan
        known = [AUTO_PLAN, *sites.all_plans()]
        if not isinstance(names, (list, tuple)) or not names:
            raise ValueError(f"unknown plan {self.plan!r}; known: {', '.join(known)}, or a list of these")
        if not isinstance(self.plan, str):
            object.__setattr__(self, "plan", tuple(names))
        for name in names:
            if name not in known:
                raise ValueError(f"unknown plan {name!r}; known: {', '.join(known)}")

    def _check_sites(self) -> None:
        known = [kind.name for kind in sites.KINDS]
        is_list = isinstance(self.sites, (list, tuple)) and len(self.sites) > 0
        if not is_list or not all(name in known for name in self.sites):
            raise ValueError(f"sites must be a list of kinds of sites, of {', '.join(known)}, got {self.sites!r}")
        object.__setattr__(self, "sites", tuple(self.sites))
        names = (self.plan,) if isinstance(self.plan, str) else self.plan
        if AUTO_PLAN not in names and not self.plans:
            raise ValueError(f"plan={self.plan!r} concerns no site, since sites={self.sites} leaves out its kind")

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
