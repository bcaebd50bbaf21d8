"""Finds the sites of a model, and those among them that the config selects."""

from __future__ import annotations

from collections.abc import Sequence
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
        chosen: qualified names of blocks.
        others: sites of other kinds that are patched now.
    """

    sites: tuple[Site, ...]
    chosen: frozenset[str]
    others: tuple[Site, ...]

    def is_chosen(self, site: Site) -> bool:
        """Whether the patterns select it."""
        return site.holder_name in self.chosen

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
    if not (sites or conflicts):
        raise PatchingError(
            f"no {' and no '.join(kind.name for kind in config.kinds)} to invert in {type(model).__name__}. "
            + " ".join(kind.nothing_found(model) for kind in config.kinds)
        )
    chosen = _chosen([*(site.holder_name for site in sites), *conflicts], config)
    for name in conflicts:
        if name in chosen:
            raise PatchingError(f"{name}: {conflicts[name]}, or exclude the block with InvActConfig(exclude=[...])")
    try:
        check_device(config.backend, model.parameters())
    except RuntimeError as error:
        raise PatchingError(str(error)) from None
    others = tuple(site for site in patched_sites(model) if site.kind not in config.kinds)
    return Selection(sites, chosen, others)


def _chosen(names: Sequence[str], config: InvActConfig) -> frozenset[str]:
    for pattern in (*config.include, *config.exclude):
        if not _matches(names, pattern):
            raise PatchingError(f"the pattern {pattern!r} matches none of the model's blocks: {_shorten(names)}")
    chosen = {name for pattern in config.include for name in _matches(names, pattern)}
    chosen -= {name for pattern in config.exclude for name in _matches(names, pattern)}
    if not chosen:
        raise PatchingError(f"include={config.include} without exclude={config.exclude} leaves no block to patch")
    return frozenset(chosen)


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(plain_name(name), pattern)]


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:2], "...", names[-1]])
