"""What patching did, site by site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """One activation in one block.

    Attributes:
        name: qualified name of the activation, e.g. ``model.layers.0.mlp.act_fn``.
        block: class of the block.
        activation: what is installed there in the unpatched model.
        curve: the curve that is inverted; None where it is left alone.
        reason: why it is left alone; empty where it is patched.
    """

    name: str
    block: str
    activation: str
    curve: str | None
    reason: str = ""


@dataclass(frozen=True)
class PatchReport:
    """The sites that were found, in the model's order. Printing it gives a table."""

    sites: tuple[Site, ...]

    @property
    def patched(self) -> int:
        """How many activations are inverted now."""
        return sum(site.curve is not None for site in self.sites)

    def __str__(self) -> str:
        head = f"inverted activations: {self.patched} of {len(self.sites)} sites patched"
        rows = [("site", "block", "activation", "plan")]
        rows += [
            (site.name, site.block, site.activation, f"save output ({site.curve})" if site.curve else site.reason)
            for site in self.sites
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join([head, *(f"  {line}" for line in lines)])
