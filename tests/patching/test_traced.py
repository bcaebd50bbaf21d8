"""Tracing a patched model records the unpatched operations, in training mode too, and the model stays patched."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact import patch_model
from hf_invact.sites.activations import install
from tests.helpers import normal


class MLP(nn.Module):
    def __init__(self, act: Any, is_gated: bool = False) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 16), act, nn.Linear(16, 8)
        self.gate = nn.Linear(8, 16) if is_gated else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.up(x) if self.gate is None else self.act(self.gate(x)) * self.up(x)
        result: Tensor = self.down(self.act(inner) if self.gate is None else inner)
        return result


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "module": lambda: MLP(nn.GELU()),
    "function": lambda: MLP(F.gelu),
    "gate": lambda: MLP(nn.SiLU(), is_gated=True),
    "with parameters": lambda: MLP(nn.PReLU()),
}
TRACERS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "jit.trace": lambda model, x: torch.jit.trace(model, (x,)),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("trace", TRACERS.values(), ids=TRACERS)
@pytest.mark.parametrize("make", BLOCKS.values(), ids=BLOCKS)
def test_a_traced_model(
    make: Callable[[], nn.Module], trace: Callable[[nn.Module, Tensor], nn.Module], training: bool
) -> None:
    model, x = make().train(training), normal(4, 8)
    expected = model(x)
    assert patch_model(model).patched == 1
    traced = trace(model, x)
    assert not re.search(r"ops\.hf_invact|hf_invact::", str(traced.graph))
    assert torch.equal(traced(x), expected)
    assert len(list(install.patched(model))) == 1
