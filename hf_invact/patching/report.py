"""The report of what patching did at each site."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..display.sizes import size
from ..display.tables import table
from ..sites import Plan, all_plans


@dataclass(frozen=True)
class SiteReport:
    """What was done at one site.

    Attributes:
        name: qualified name of what is patched, e.g. ``model.layers.0.mlp.act_fn``.
        block: class of the block that holds it.
        activation: what the unpatched model has there: the activation's class, or "LoRA" for a layer with adapters.
        curve: what replaces it; None where it is left alone.
        plan: name of the plan (see `InvActConfig.plan`); None where it is left alone.
        before, after: bytes that the block keeps for the backward pass per token, beyond its input, unpatched and as
            it is now; None where they were not measured. Adapters are patched one after the other: "before" has those
            that come earlier in the report, and the bytes may be those of the whole layer around the block. Of norms it
            is what they keep themselves, without what the model keeps anyway. A tensor that several norms get counts
            for the first that keeps it.
        reason: why it is left alone, or why not measured; else empty.
        kind: which kind of site it is, as `InvActConfig.sites` spells it.
    """

    name: str
    block: str
    activation: str
    curve: str | None
    plan: str | None = None
    before: int | None = None
    after: int | None = None
    reason: str = ""
    kind: str = "activation"

    @property
    def is_patched(self) -> bool:
        """Whether it is patched now."""
        return self.plan is not None

    @property
    def saved(self) -> int | None:
        """How many fewer bytes the block saves per token; None if they were not measured."""
        return None if self.before is None or self.after is None else self.before - self.after


@dataclass(frozen=True)
class PatchReport:
    """The sites that were found, in model order. It prints as a table, in which equal sites share a row.

    Attributes:
        sites: of all kinds.
        missing: why there are no sites of a kind, where that needs to be said.
        checkpointed: names of the layers that `InvActConfig.checkpoint_layers` has checkpointed.
        layers: how many could be; None if the config leaves checkpointing as it is.
    """

    sites: tuple[SiteReport, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    checkpointed: tuple[str, ...] = ()
    layers: int | None = None

    @property
    def patched(self) -> int:
        """How many sites are patched now."""
        return sum(site.is_patched for site in self.sites)

    @property
    def saved_bytes_per_token(self) -> int:
        """How many fewer bytes all measured sites together save per token."""
        return sum(site.saved or 0 for site in self.sites if site.is_patched)

    def summary(self, checkpointed: Sequence[str] = ()) -> str:
        """What was done, or why nothing was, in one line.

        Args:
            checkpointed: names of the modules whose forward pass is run again during the backward pass.

        >>> print(PatchReport((SiteReport("mlp.act", "MLP", "GELU", "gelu", "output", 2048, 1088),)).summary())
        inverted activations: 1 of 1 sites patched, 960 B per token less for the backward pass
        """
        inverted = [site for site in self.sites if site.is_patched]
        if not inverted:
            return f"{self._count}, so no memory is saved ({_reasons(self.sites)})"
        text = self._count + self._effect((*checkpointed, *self.checkpointed))
        if unmeasured := [site for site in inverted if site.saved is None]:
            text += f"; {len(unmeasured)} not measured ({_reasons(unmeasured)})"
        if left_alone := [site for site in self.sites if not site.is_patched]:
            text += f"; {len(left_alone)} left alone ({_reasons(left_alone)})"
        return text + "".join(f"; no {kind} was found" for kind in self.missing)

    @property
    def _count(self) -> str:
        text = f"inverted activations: {self.patched} of {len(self.sites)} sites patched"
        return text if self.layers is None else f"{text}, {len(self.checkpointed)} of {self.layers} layers checkpointed"

    def _effect(self, checkpointed: Sequence[str]) -> str:
        inverted = [site for site in self.sites if site.is_patched]
        if any(_module_around(site.name, checkpointed) is not None for site in inverted):
            return _under_checkpointing(inverted, checkpointed)
        if self.saved_bytes_per_token:
            return f", {_changed(self.saved_bytes_per_token)} for the backward pass"
        is_measured = any(site.saved is not None for site in inverted)
        return ", which keep as much for the backward pass as without" if is_measured else ""

    def __str__(self) -> str:
        head = self._count + self._effect(self.checkpointed)
        rows: list[tuple[str, ...]] = [("site", "block", "original", "plan", "each keeps per token", "why")]
        alike: dict[tuple[object, ...], list[SiteReport]] = {}
        for site in self.sites:
            alike.setdefault(_look(site), []).append(site)
        rows += map(_row, alike.values())
        if not any(row[-1] for row in rows[1:]):
            rows = [row[:-1] for row in rows]
        lines = table(rows, aligned="<").splitlines()
        lines += [_explain(plan) for plan in all_plans().values() if any(site.plan == plan.name for site in self.sites)]
        lines += [f"no {kind} was found: {why}" for kind, why in self.missing.items()]
        if self.checkpointed:
            lines.append(f"checkpointed: {join_names(self.checkpointed)}")
        return "\n".join([head, *(f"  {line}" for line in lines)])


def _changed(saved: int) -> str:
    return f"{size(abs(saved))} per token {'less' if saved > 0 else 'more'}"


def _reasons(sites: Iterable[SiteReport], most: int = 3) -> str:
    """The reasons, each once."""
    reasons = list(dict.fromkeys(site.reason.removeprefix("left alone: ") for site in sites))
    more = len(reasons) - most
    return "; ".join(reasons[:most]) + (f"; and {more} more reasons" if more > 0 else "")


def _under_checkpointing(inverted: Iterable[SiteReport], checkpointed: Sequence[str]) -> str:
    """The summary for sites inside of checkpointed modules, which are recomputed one after the other."""
    saved: dict[str | None, int] = {}
    for site in inverted:
        module = _module_around(site.name, checkpointed)
        saved[module] = saved.get(module, 0) + (site.saved or 0)
    outside = saved.pop(None, 0)
    between = f"is {_changed(outside)}" if outside else "does not change"
    return (
        f". Gradient checkpointing is on: the layer that is being recomputed keeps {_changed(max(saved.values()))}, "
        f"but what is kept between the forward and the backward pass {between}"
    )


def _module_around(name: str, modules: Iterable[str]) -> str | None:
    return next((module for module in modules if not module or name.startswith(f"{module}.")), None)


def _look(site: SiteReport) -> tuple[object, ...]:
    """Equal for sites that share a row: everything but the numbers in their names."""
    return (_pattern(site.name), *(getattr(site, name) for name in SiteReport.__annotations__ if name != "name"))


def _row(sites: list[SiteReport]) -> tuple[str, ...]:
    site = sites[0]
    kept = "" if site.before is None or site.after is None else f"{size(site.before)} -> {size(site.after)}"
    plan = site.plan or "-"
    if site.is_patched and site.kind == "activation":
        plan += f" ({site.curve})"
    return _joined([site.name for site in sites]), site.block, site.activation, plan, kept, site.reason


def join_names(names: Iterable[str]) -> str:
    """Names in one line. Those that differ in their numbers only are joined.

    >>> join_names(["head.act", "layers.0.mlp.act", "layers.1.mlp.act", "layers.3.mlp.act"])
    'head.act, layers.0-1,3.mlp.act (3)'
    """
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_pattern(name), []).append(name)
    return ", ".join(map(_joined, alike.values()))


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _joined(names: list[str]) -> str:
    """``layers.0-4,6-31.mlp.act_fn (31)`` for names that differ in their numbers."""
    if len(names) == 1:
        return names[0]
    parts = zip(*(re.split(r"(\d+)", name) for name in names), strict=True)
    joined = "".join(part[0] if len(set(part)) == 1 else _ranges(sorted(set(map(int, part)))) for part in parts)
    return f"{joined} ({len(names)})"


def _ranges(numbers: list[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in ranges)


def _explain(plan: Plan) -> str:
    return f"{plan.name}: keeps {plan.keeps}; {'exact' if plan.exact else 'approximate'} gradients"
