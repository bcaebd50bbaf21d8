"""Finds the sites of a model, and those among them that the config selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..ops import check_device
from ..sites import Site, patched_sites
from ..sites.errors import PatchingError
from .config import InvActConfig
from .weights.sharding import plain_name


@dataclass(frozen=True)
class Selection:
    """Sites, and the names of the blocks that the config's patterns select.

    Attributes:
        sites: of all the kinds that the config names, also those that are not selected.
        chosen: qualified names of the sites that are selected, and of blocks that cannot be patched.
        others: sites of other kinds that are patched now.
        missing: why there are no sites of a kind, where that needs to be said.
    """

    sites: tuple[Site, ...]
    chosen: frozenset[str]
    others: tuple[Site, ...]
    missing: Mapping[str, str]

    def is_chosen(self, site: Site) -> bool:
        """Whether the patterns select it."""
        return site.name in self.chosen

    def obstacle(self, site: Site) -> str | None:
        """Why a site is left alone; None where it can be patched.

        Raises:
            PatchingError: it can be patched only once the user has changed something.
        """
        return site.kind.obstacle(site) if self.is_chosen(site) else "excluded by the config"


def select(model: nn.Module, config: InvActConfig) -> Selection:
    """What there is to patch in a model.

    Raises:
        PatchingError: there is nothing, a pattern matches nothing, no block is left, one that is selected is not that
            of the unpatched model, or the backend cannot run where the model is.
    """
    sites = tuple(site for kind in config.kinds for site in kind.find(model))
    conflicts = {
        name: why for name, module in model.named_modules() for kind in config.kinds for why in kind.conflicts(module)
    }
    absent = [kind for kind in config.kinds if not any(site.kind is kind for site in sites)]
    missing = {kind.name: reason for kind in absent if (reason := kind.nothing_found(model))}
    if not (sites or conflicts):
        names = missing or [kind.name for kind in config.kinds]
        raise PatchingError(
            f"no {' and no '.join(names)} to invert in {type(model).__name__}. {' '.join(missing.values())}"
        )
    blocks = {site.name: site.blocks for site in sites} | {name: (name,) for name in conflicts}
    chosen = _chosen(blocks, config)
    for name in conflicts:
        if name in chosen:
            raise PatchingError(f"{name}: {conflicts[name]}, or exclude the block with InvActConfig(exclude=[...])")
    try:
        check_device(config.backend, model.parameters())
    except RuntimeError as error:
        raise PatchingError(str(error)) from None
    others = tuple(site for site in patched_sites(model) if site.kind not in config.kinds)
    return Selection(sites, chosen, others, missing)


def _chosen(blocks: Mapping[str, Sequence[str]], config: InvActConfig) -> frozenset[str]:
    """The names of which a pattern matches one of the blocks."""
    matches = {
        pattern: {name for name, each in blocks.items() if any(_matches(block, pattern) for block in each)}
        for pattern in (*config.include, *config.exclude)
    }
    for pattern, names in matches.items():
        if not names:
            known = list(dict.fromkeys(block for each in blocks.values() for block in each))
            raise PatchingError(f"the pattern {pattern!r} matches none of the model's blocks: {_shorten(known)}")
    chosen = {name for pattern in config.include for name in matches[pattern]}
    chosen -= {name for pattern in config.exclude for name in matches[pattern]}
    if not chosen:
        raise PatchingError(f"include={config.include} without exclude={config.exclude} leaves no block to patch")
    return frozenset(chosen)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(plain_name(name), pattern)


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
