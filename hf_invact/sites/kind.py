"""What patching knows of the places that it patches: each belongs to a kind, and each kind has this interface."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor, nn

SETTINGS = "_hf_invact"  # the attribute of a module, of which a kind has changed the class, that says how it is patched


@dataclass(frozen=True)
class Plan:
    """One way to have a site keep less for the backward pass.

    Attributes:
        name: as `InvActConfig.plan` spells it. No two kinds share a name.
        keeps: what is saved for the backward pass, in words.
        exact: whether the gradients are those of the unpatched model.
    """

    name: str
    keeps: str
    exact: bool


@dataclass(frozen=True)
class Known:
    """Names of what can be patched.

    Attributes:
        key: of the names in the JSON of `hf-invact info`.
        heading: of the names in its text.
        names: in a list, or in one for each group.
    """

    key: str
    heading: str
    names: Sequence[str] | Mapping[str, Sequence[str]]


class NotApplicable(Exception):
    """A site cannot have a plan. Raised by `SiteKind.install`, or later by what was installed with ``strict=True``."""


@dataclass(frozen=True, eq=False)
class Site:
    """A place in a model that can be patched. Kinds add what they need to find it again.

    Attributes:
        kind: which kind of site it is.
        name: qualified name of what is patched, e.g. ``model.layers.0.mlp.act_fn``.
        holder_name: qualified name of the module that holds it.
        holder: that module.
        block: name of its class in the unpatched model.
        original: how messages call what the unpatched model has there.
        computes: the name of the operation that can take its place; None where none is known.
    """

    kind: SiteKind[Any, Any]
    name: str
    holder_name: str
    holder: nn.Module
    block: str
    original: str
    computes: str | None

    @property
    def blocks(self) -> tuple[str, ...]:
        """Qualified names of blocks: a pattern of `InvActConfig` that matches one of them selects the site."""
        return (self.holder_name,)

    @property
    def module(self) -> nn.Module | None:
        """What a forward pass calls there now; None where it is not a module."""
        raise NotImplementedError

    @property
    def key(self) -> Hashable:
        """Equal for sites that get the same decision where their holders are alike."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ModuleSite(Site):
    """A site that is a module. Patterns may name it, or what holds it.

    Attributes:
        attribute: the name under which the holder has it.
    """

    attribute: str

    @property
    def blocks(self) -> tuple[str, ...]:
        return self.holder_name, self.name

    @property
    def module(self) -> nn.Module:
        return self.holder.get_submodule(self.attribute)

    @property
    def key(self) -> Hashable:
        return self.attribute


AnySite = TypeVar("AnySite", bound=Site)
AnyPlan = TypeVar("AnyPlan", bound=Plan)


class SiteKind(Protocol[AnySite, AnyPlan]):
    """A kind of sites: how to find them, and how to install and undo each of its plans.

    Attributes:
        name: as `InvActConfig.sites` spells it.
        plans: all that it has. Of two that keep as much, the first is installed.
        measured: in the module around each site; "together" where sites keep the same tensors, so that one by itself
            may save nothing; or "alone", where a site is a module, beside what the module around it keeps anyway.
    """

    name: str
    plans: tuple[AnyPlan, ...]
    measured: Literal["around", "together", "alone"] = "around"

    def find(self, model: nn.Module) -> Iterator[AnySite]:
        """The sites of a model, patched or not, in its order."""

    def patched(self, model: nn.Module) -> Iterator[AnySite]:
        """Those that are patched now, also where `find` does not look any more."""

    def nothing_found(self, model: nn.Module) -> str:
        """Why `find` finds nothing in a model, and what the user can do about it, in sentences. Empty for kinds that
        few models have."""

    def conflicts(self, module: nn.Module) -> Iterator[str]:
        """Why a module cannot be patched: another library has put it there, or has patched it."""

    def obstacle(self, site: AnySite) -> str | None:
        """Why an unpatched site is left alone; None where it can be patched.

        Raises:
            PatchingError: it can be patched only once the user has changed something. The message says what.
        """

    def fallback(self, site: AnySite) -> AnyPlan | None:
        """The plan where nothing can be measured; None leaves the site alone."""

    def install(self, site: AnySite, plan: AnyPlan, backend: str, *, strict: bool = False) -> None:
        """Patch a site, whatever is installed there.

        Args:
            strict: for a trial. What is installed then raises `NotApplicable` where the plan cannot work.

        Raises:
            NotApplicable: the site cannot have this plan.
        """

    def restore(self, site: AnySite) -> None:
        """Put back what the unpatched model has there. Does nothing where the site is not patched."""

    def installed(self, site: AnySite) -> AnyPlan | None:
        """The plan that is installed; None where the site is not patched."""

    def suspended(self, site: AnySite) -> AbstractContextManager[None]:
        """What the unpatched model has there, inside; afterwards what was there, whatever is installed inside."""

    def observed(self, site: AnySite, note: Callable[[Tensor, Tensor], None]) -> AbstractContextManager[None]:
        """Inside, hand the input and the result of each call of an unpatched site to a function."""

    def notes(self, site: AnySite) -> dict[str, Any] | None:
        """Where to remember something about what is installed, for as long as it is; None where there is no place."""

    def known(self) -> tuple[Known, ...]:
        """What it can patch, for `hf-invact info`."""


class Replacement:
    """Base of what takes the place of an object of the unpatched model, and holds that object."""

    original: Any


def original_of(value: object) -> Any:
    """The object of the unpatched model: the one that a `Replacement` holds, else the value itself."""
    return value.original if isinstance(value, Replacement) else value
