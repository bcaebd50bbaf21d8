"""An amount of memory that a training may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from ..display.sizes import parse_size

AUTO = "auto"
HELP = "write an amount such as 24GiB or 24GB, a number of bytes, a share of the device's memory such as 90%, or auto"


@dataclass(frozen=True)
class Budget:
    """What `InvActConfig.memory_budget` says.

    Attributes:
        amount: bytes; None where it depends on the device.
        share: of the device's memory; None for an amount, and for all that is free ("auto").
    """

    amount: int | None = None
    share: float | None = None

    def on(self, device: torch.device) -> int:
        """Bytes that may be taken on a device, with what this process has taken there.

        Raises:
            ValueError: it is a part of the memory of a device that is no GPU.
        """
        if self.amount is not None:
            return self.amount
        if device.type != "cuda":
            raise ValueError(
                f"a memory budget of {AUTO} or in percent needs a GPU, and the model is on {device.type}: write an "
                "amount such as 24GiB"
            )
        free, total = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) if self.share is None else int(self.share * total)


def parse_budget(value: object) -> Budget:
    """Read a memory budget.

    Args:
        value: bytes as a number, or a text: an amount ("24GiB", "24GB", "25769803776"), "90%", or "auto".

    Raises:
        ValueError: anything else.

    >>> parse_budget("24GiB").amount == parse_budget(24 * 2**30).amount == 24 * 2**30
    True
    >>> parse_budget("90%").share
    0.9
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1 and value == int(value):
        return Budget(int(value))
    if not isinstance(value, str):
        raise ValueError(f"invalid memory budget {value!r}; {HELP}")
    text = value.strip()
    if text == AUTO:
        return Budget()
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        share = float(match[1]) / 100
        if not 0 < share <= 1:
            raise ValueError(
                f"invalid memory budget {value!r}: a share of the device's memory is more than 0% and at most 100%"
            )
        return Budget(share=share)
    if re.fullmatch(r"[1-9]\d*", text):
        return Budget(int(text))
    try:
        return Budget(parse_size(text))
    except ValueError:
        raise ValueError(f"invalid memory budget {value!r}; {HELP}") from None
