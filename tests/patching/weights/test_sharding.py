"""What a probe may run if weights are sharded, or if a wrapper communicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from hf_invact import patch_model, register_block, unpatch_model
from hf_invact.patching.weights.sharding import is_sharded
from tests.models import ACTIVATIONS, tiny_model

pytestmark = pytest.mark.usefixtures("process_group")


class Block(nn.Module):
    """Counts the forward passes of all instances."""

    forwards: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        Block.forwards += 1
        result: Tensor = self.down(self.act(self.up(x)))
        return result


@pytest.fixture(autouse=True)
def registered() -> None:
    register_block(Block, activation="act")
    Block.forwards = 0


def fsdp1(model: nn.Module, *, flat: bool = False, units: tuple[type[nn.Module], ...] = (Block,)) -> nn.Module:
    policy = ModuleWrapPolicy(set(units)) if units else None
    device = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=device, use_orig_params=not flat)


FSDP1: dict[str, Callable[[nn.Module], nn.Module]] = {
    "each block a unit": fsdp1,
    "each block a unit, flat": lambda model: fsdp1(model, flat=True),
    "one unit": lambda model: fsdp1(model, units=()),
    "one unit, flat": lambda model: fsdp1(model, flat=True, units=()),
    "units within the block": lambda model: fsdp1(model, units=(nn.Linear,)),
    "units within the block, flat": lambda model: fsdp1(model, flat=True, units=(nn.Linear,)),
}


@pytest.mark.parametrize("is_part", [False, True], ids=["the model", "a part of it"])
@pytest.mark.parametrize("wrap", FSDP1.values(), ids=FSDP1.keys())
def test_nothing_is_run_in_or_around_fsdp1(wrap: Callable[[nn.Module], nn.Module], is_part: bool) -> None:
    """Its hooks would gather weights, and leave them gathered or crash."""
    wrapped = wrap(nn.Sequential(Block(), Block()))
    blocks = [module for module in wrapped.modules() if isinstance(module, Block)]
    sites = patch_model(blocks[1] if is_part else wrapped).sites
    assert [site.plan for site in sites] == ["output"] * (1 if is_part else 2)
    assert all(site.reason.startswith("by default, not measured") for site in sites)
    assert Block.forwards == 0


@pytest.mark.parametrize("wrap", [*FSDP1.values(), fully_shard], ids=[*FSDP1.keys(), "FSDP2"])
def test_what_was_measured_before_sharding_keeps_its_figures(wrap: Callable[[nn.Module], Any]) -> None:
    model = nn.Sequential(Block(), Block())
    before = patch_model(model, ACTIVATIONS)
    assert before.saved_bytes_per_token > 0
    wrapped = wrap(model)
    Block.forwards = 0
    assert patch_model(wrapped, ACTIVATIONS) == before
    assert patch_model(wrapped, replace(ACTIVATIONS, backend="eager", include=("[01]",))) == before
    assert patch_model(wrapped, replace(ACTIVATIONS, include=("1",))).patched == 1
    assert Block.forwards == 0


def test_the_plan_stays_but_not_the_figures_of_another_precision() -> None:
    model = tiny_model("llama")
    patch_model(model, ACTIVATIONS)
    fully_shard(model)
    sites = patch_model(model, replace(ACTIVATIONS, autocast_dtype=torch.bfloat16)).sites
    assert [(site.plan, site.after) for site in sites] == [("gate-output", None)] * 2
    assert all(site.reason == "as it was before the weights were sharded" for site in sites)


def test_another_plan_can_still_be_demanded() -> None:
    model = tiny_model("llama")
    patch_model(model, ACTIVATIONS)
    fully_shard(model)
    sites = patch_model(model, replace(ACTIVATIONS, plan="gate-inputs")).sites
    assert [site.plan for site in sites] == ["gate-inputs"] * 2
    assert all(site.after < site.before for site in sites)
    unpatch_model(model)


def test_ddp_is_measured_as_what_it_wraps() -> None:
    plain = patch_model(tiny_model("bert")).sites
    sites = patch_model(DistributedDataParallel(tiny_model("bert"))).sites
    figures = [(site.plan, site.before, site.after, site.reason) for site in plain]
    assert [(site.plan, site.before, site.after, site.reason) for site in sites] == figures


def test_unsharded_weights_are_not_mistaken_for_sharded() -> None:
    assert not is_sharded(DistributedDataParallel(tiny_model("llama")))
    assert is_sharded(fsdp1(nn.Sequential(Block())))
    assert is_sharded(fully_shard(nn.Sequential(Block())))
