"""Activations with learned parameters: their inverted forms, exact gradients, and blocks that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ApertusConfig
from transformers.activations import XIELUActivation
from transformers.models.apertus.modeling_apertus import ApertusMLP

from hf_invact.ops import invert_prelu, invert_xielu
from hf_invact.sites.activations.learned import PatchedPReLU, PatchedXIELU
from tests.helpers import normal

# Of the parameters before the softplus: Transformers' start (to 1e-3), steep, shallow, and one past where float32 can
# tell its factor from beta.
ALPHAS = [(0.203, -1.05), (1.0, 3.0), (-3.0, -5.0), (-20.0, -20.0)]
each_alphas = pytest.mark.parametrize("alphas", ALPHAS, ids=str)


class Pass(NamedTuple):
    """What a forward and a backward pass give; the gradients of the parameters in their order."""

    y: Tensor
    dx: Tensor
    parameters: tuple[Tensor, ...]


def passes(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Pass:
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    dx, *parameters = torch.autograd.grad(y, [leaf, *module.parameters()], dy.to(y.dtype))
    return Pass(y.detach(), dx, tuple(parameters))


def prelu(*weights: float, dtype: torch.dtype = torch.float32) -> nn.PReLU:
    module = nn.PReLU(len(weights))
    module.weight.data = torch.tensor(weights, dtype=dtype)
    return module


def xielu(alphas: tuple[float, float], dtype: torch.dtype = torch.float32) -> XIELUActivation:
    module = XIELUActivation(dtype=dtype)
    module.alpha_p.data.fill_(alphas[0])
    module.alpha_n.data.fill_(alphas[1])
    return module


def inverted(module: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(module, nn.PReLU):
        return lambda x: invert_prelu(x, module.weight)
    return lambda x: invert_xielu(
        x, F.softplus(module.alpha_p), module.beta + F.softplus(module.alpha_n), module.beta, module
    )


def in_float64(module: nn.Module) -> nn.Module:
    """The same formula and the same numbers."""
    twin = type(module)(len(module.weight)) if isinstance(module, nn.PReLU) else type(module)()
    twin = twin.double()
    twin.load_state_dict(module.state_dict())
    return twin


def exact_passes(module: nn.Module, x: Tensor, dy: Tensor) -> Pass:
    twin = in_float64(module)
    return passes(twin, twin, x.double(), dy.double())


MODULES: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "prelu": lambda dtype: prelu(0.25, dtype=dtype),
    "prelu_of_channels": lambda dtype: prelu(*torch.linspace(0.1, 1.5, 8).tolist(), dtype=dtype),
    "xielu": lambda dtype: xielu(ALPHAS[0], dtype),
}
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


WIDTH, INNER = 16, 48


class FeedForward(nn.Module):
    """A block with PReLU."""

    def __init__(self, weights: int = 1) -> None:
        super().__init__()
        self.up, self.act_fn, self.down = nn.Linear(WIDTH, INNER), nn.PReLU(weights, init=0.3), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act_fn(self.up(x)))


def _apertus() -> nn.Module:
    return ApertusMLP(ApertusConfig(hidden_size=WIDTH, intermediate_size=INNER, dtype=torch.float32))


BLOCKS: dict[str, Callable[[], nn.Module]] = {"prelu": FeedForward, "xielu": _apertus}
CLASSES = {"prelu": (nn.PReLU, PatchedPReLU), "xielu": (XIELUActivation, PatchedXIELU)}
each_name = pytest.mark.parametrize("name", BLOCKS)


def two_blocks(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(BLOCKS[name](), BLOCKS[name]())


def kinds(model: Any) -> list[type]:
    return [type(block.act_fn) for block in model]


def loss_and_gradients(model: nn.Module, x: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(3 * normal(32, WIDTH) if x is None else x).square().mean()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}
