"""The bytes that an operator has to move, counted in tensors of its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

SIDE_BITS_PER_BYTE = 8
WIDE = 4  # bytes of a number in float32


class Moves(Protocol):
    """What an implementation moves."""

    def bytes(self, direction: str, elements: int, itemsize: int) -> int:
        """What is moved in a direction: "forward", "backward", or "autograd" for both."""


class Traffic(NamedTuple):
    """How many tensors are read and written, and whether side bits are as well."""

    forward: int
    backward: int
    has_side: bool = False

    def bytes(self, direction: str, elements: int, itemsize: int) -> int:
        """What is moved in a direction: "forward", "backward", or "autograd" for both."""
        if direction == "autograd":
            return sum(self.bytes(each, elements, itemsize) for each in ("forward", "backward"))
        tensors: int = getattr(self, direction)
        return tensors * elements * itemsize + (elements // SIDE_BITS_PER_BYTE if self.has_side else 0)


@dataclass(frozen=True)
class MixedTraffic:
    """Tensors of the input's dtype, and of float32."""

    narrow: Traffic
    wide: Traffic

    def bytes(self, direction: str, elements: int, itemsize: int) -> int:
        """What is moved in a direction: "forward", "backward", or "autograd" for both."""
        return self.narrow.bytes(direction, elements, itemsize) + self.wide.bytes(direction, elements, WIDE)


# x -> y; dy, x (or y) -> dx
NORM = Traffic(forward=2, backward=3)
ACTIVATION = Traffic(forward=2, backward=3)
INVERTED_ACTIVATION = ACTIVATION._replace(has_side=True)
# gate, up -> product; dy, gate (or product), up -> dgate, dup
FUSED_GATE = Traffic(forward=3, backward=5)
INVERTED_GATE = FUSED_GATE._replace(has_side=True)
# gate -> a; a, up -> product; in the backward pass dy, up -> da; dy, a -> dup; da, gate -> dgate
UNFUSED_GATE = Traffic(forward=5, backward=9)
