"""What is measured on each kind of device: sizes, dtypes and effort."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hf_invact.ops import AUTO, BACKENDS

from ..common.errors import ConfigError
from .timing import Effort

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
OPERATORS_SHARE = 0.6  # of the time; the rest is for the steps
COLUMNS = 4096  # width of the tensors, as inside of an MLP


@dataclass(frozen=True)
class Settings:
    """The settings of a run. Runs with equal settings measure the same.

    Attributes:
        dtypes: names, the most important first, in case the time runs out.
        sizes: elements of the operators' tensors.
        compared_dtypes, compared_size: the dtypes and the size with which everything is measured. With others it is
            only PyTorch, Liger and the first backend, which need not be compiled.
        compares_all_sizes: whether everything is measured with all sizes.
        backends: for the operators.
        step_backends: for the training steps; "auto" is the default of users.
        compiles: whether `torch.compile` of the native formulas is measured.
        operator_effort: how long each operator is measured in each direction.
        rounds: how many training steps each variant takes.
        quick: tiny sizes, to test the script. The numbers mean nothing.
    """

    dtypes: tuple[str, ...]
    sizes: tuple[int, ...]
    compared_dtypes: tuple[str, ...]
    compared_size: int
    backends: tuple[str, ...]
    step_backends: tuple[str, ...]
    compiles: bool
    operator_effort: Effort
    rounds: int
    seed: int = 0
    quick: bool = False
    compares_all_sizes: bool = False

    def compares(self, dtype: str, elements: int) -> bool:
        """Whether everything is measured with this dtype and size."""
        return dtype in self.compared_dtypes and (self.compares_all_sizes or elements == self.compared_size)

    def plain(self) -> dict[str, Any]:
        """As JSON-compatible data."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def settings_for(kind: str, backends: Sequence[str] | None, seed: int, quick: bool) -> Settings:
    """The settings for a "cpu" or "cuda" device.

    Raises:
        ConfigError: a backend is unknown.
    """
    unknown = [name for name in backends or () if name not in BACKENDS]
    if unknown:
        raise ConfigError(f"--backends: unknown backend {unknown[0]!r}; known: {', '.join(BACKENDS)}")
    default = ("triton", "compile", "eager") if kind == "cuda" else ("eager",)
    chosen = tuple(backends or (name for name in default if name in BACKENDS))
    steps = chosen if backends or kind == "cpu" else (AUTO,)
    if quick:
        dtypes, effort = ("fp32", "bf16"), Effort(seconds=0.01, least=2, most=3)
        return Settings(dtypes, (1 << 12, 1 << 14), dtypes, 1 << 14, chosen, steps, False, effort, 2, seed, quick)
    if kind == "cpu":
        dtypes, effort = ("fp32", "bf16"), Effort(seconds=1.5, least=9, most=50)
        return Settings(
            dtypes, (1 << 22, 1 << 20), dtypes, 1 << 22, chosen, steps, True, effort, 25, seed, compares_all_sizes=True
        )
    compared, effort = ("bf16", "fp32"), Effort(seconds=0.3, least=10, most=100)
    sizes = (1 << 26, 1 << 24, 1 << 28, 1 << 20)
    return Settings((*compared, "fp16"), sizes, compared, 1 << 26, chosen, steps, True, effort, 12, seed)
