"""Where the sites of a model are measured. Alike sites share what was found."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import nn

from ...sites import Site
from ..errors import NoProbeError
from ..probing.probe import Scope
from ..probing.runs import Runs
from ..probing.scopes import find_scope
from ..probing.surroundings import LEVELS, Surrounding, surroundings


@dataclass(frozen=True)
class Place:
    """Where a site is measured.

    Attributes:
        key: equal for alike sites in alike modules.
        module: around this site, which is run; None where nothing can be.
        failure: why not.
    """

    key: Hashable
    module: nn.Module | None
    failure: str = ""


def around(model: nn.Module, site: Site) -> list[Surrounding]:
    """What to try for a site. Where it is run forward alone, this may be the whole model."""
    return surroundings(model, site.holder_name, None if site.kind.measured == "alone" else LEVELS)


class Places:
    """Finds where the sites of a model, none of which is patched, are measured.

    Sites are alike if the module that is run for them, and all that was tried before it, have the same `signature` and
    hold them in the same place. What a layer is like beyond that does not matter: layers whose MLP can be run by itself
    share one probe, however they differ elsewhere.

    Args:
        model: what is run, or whose modules are.
        runs: of its modules.
    """

    def __init__(self, model: nn.Module, runs: Runs) -> None:
        self.model, self.runs = model, runs
        self._found: dict[Hashable, int | str] = {}  # how many modules out, or why there is none
        self._scopes: dict[nn.Module, Scope] = {}

    def of(self, site: Site) -> Place:
        """Where a site is measured."""
        place = self._of(site)
        self.runs.done(site)
        return place

    def _of(self, site: Site) -> Place:
        surrounding = around(self.model, site)
        key: tuple[object, ...] = (site.key,)
        keys: dict[nn.Module, Hashable] = {}
        for each in surrounding:
            keys[each.module] = key = (*key, each.path, self.runs.kind_of(each.module))
            if (found := self._found.get(key)) is not None:
                return Place(key, None, found) if isinstance(found, str) else Place(key, surrounding[found].module)
        try:
            scope, outermost = self._find(site, surrounding)
        except NoProbeError as error:
            self._found[key] = str(error)
            return Place(key, None, str(error))
        self._scopes[scope.module] = scope
        place = Place(keys[outermost], scope.module)
        self._found[place.key] = [each.module for each in surrounding].index(scope.module)
        return place

    def scope(self, site: Site, place: Place) -> Scope:
        """What is run for a site.

        Raises:
            NoProbeError: it cannot be run.
        """
        if place.module is None:
            raise NoProbeError(place.failure)
        if place.module not in self._scopes:
            self._scopes[place.module], _ = self._find(site, around(self.model, site))
        return self._scopes[place.module]

    def _find(self, site: Site, surrounding: Sequence[Surrounding]) -> tuple[Scope, nn.Module]:
        return find_scope(site, surrounding, self.runs, makes_input=site.kind.measured != "alone")
