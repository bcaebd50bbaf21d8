"""Weights that are gathered for a forward pass and freed after it (FSDP2, ZeRO-3) do not count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.multiprocessing.reductions import StorageWeakRef

from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.models import batch, each_model, tiny_model


@each_model
def test_weights_that_fsdp2_gathers_do_not_count(name: str, process_group: None) -> None:
    plain, sharded = tiny_model(name), tiny_model(name)
    for layer in next(module for module in sharded.modules() if isinstance(module, nn.ModuleList)):
        fully_shard(layer, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    fully_shard(sharded, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    found = []
    for model in (plain, sharded):
        torch.manual_seed(0)
        with SavedActivations(model) as saved:
            loss = model(**batch(model)).loss
        loss.backward()
        weight = next(model.parameters()).grad
        found.append((saved.total_bytes, saved.by_module, loss, weight.full_tensor() if model is sharded else weight))
    torch.testing.assert_close(found[1], found[0])


class SavesTheLeaf(torch.autograd.Function):
    """A linear layer that saves the parameter itself and not a view of it, as DeepSpeed's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return dy @ weight, dy.t() @ x


class Partitioned(nn.Module):
    """Its weight is empty except during its own forward and backward pass."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__()
        self.whole = whole
        self.weight = nn.Parameter(whole.new_empty(0))
        self.gathered: list[StorageWeakRef] = []
        self.register_full_backward_pre_hook(lambda module, dy: self._gather())

    def _gather(self) -> None:
        part_of_a_buffer = torch.cat([normal(3), self.whole.flatten()])[3:]
        self.weight.data = part_of_a_buffer.view_as(self.whole)
        self.gathered.append(StorageWeakRef(self.weight.untyped_storage()))

    def forward(self, x: Tensor) -> Tensor:
        self._gather()
        y: Tensor = SavesTheLeaf.apply(x, self.weight)
        self.weight.data = self.whole.new_empty(0)
        return y


def test_weights_that_zero_3_gathers_do_not_count_and_are_freed() -> None:
    model = nn.Sequential(Partitioned(normal(32, 8)), nn.GELU(), Partitioned(normal(8, 32, seed=1)))
    x, dy = normal(4, 8).requires_grad_(), normal(4, 8, seed=2)
    with SavedActivations(model) as saved:
        y = model(x)
        assert [storage.expired() for layer in (model[0], model[2]) for storage in layer.gathered] == [True, True]
    assert saved.total_bytes == 4 * (4 * 8 + 4 * 32 + 4 * 32)

    first, second = (layer.whole.clone().requires_grad_() for layer in (model[0], model[2]))
    same = nn.functional.gelu(x @ first.t()) @ second.t()
    (expected,) = torch.autograd.grad(same, x, dy)
    (found,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(found, expected)


def test_what_takes_the_place_of_a_freed_shard_counts() -> None:
    """The address of a freed storage is reused, here by an activation."""
    sizes = set()
    for _ in range(8):
        model = nn.Sequential(*(Partitioned(normal(8, 8)) for _ in range(16)))
        with SavedActivations(model) as saved:
            model(normal(4, 8).requires_grad_())
        sizes.add(saved.total_bytes)
    assert sizes == {16 * 4 * 8 * 4}


def test_a_gathered_weight_that_is_tensor_parallel_as_well(process_group: None) -> None:
    """It stays a DTensor when FSDP2 has gathered it, and few operations support those."""
    mesh = torch.distributed.init_device_mesh("cpu", (1, 1), mesh_dim_names=("dp", "tp"))
    plan = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    plain, sharded = tiny_model("llama"), tiny_model("llama")
    for layer in sharded.model.layers:
        parallelize_module(layer.mlp, mesh["tp"], plan)
        fully_shard(layer, mesh=mesh["dp"])
    fully_shard(sharded, mesh=mesh["dp"])
    found = []
    for model in (plain, sharded):
        with SavedActivations(model) as saved:
            loss = model(**batch(model)).loss
        loss.backward()
        gradient = next(model.parameters()).grad
        found.append((saved.total_bytes, loss, gradient.full_tensor() if model is sharded else gradient))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("reshard", [True, False])
def test_gathered_weights_while_steps_follow_each_other(reshard: bool, process_group: None) -> None:
    """Forward and backward passes in one context, whether gathered weights stay or are freed each time."""
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    plain, sharded = (nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    fully_shard(sharded[0], mesh=mesh, reshard_after_forward=reshard)
    fully_shard(sharded, mesh=mesh, reshard_after_forward=reshard)
    found = []
    for model in (plain, sharded):
        with SavedActivations(model) as saved:
            for seed in range(2):
                model(normal(4, 8, seed=seed)).square().sum().backward()
        gradient = next(model.parameters()).grad
        found.append((saved.by_module, gradient.full_tensor() if model is sharded else gradient))
    torch.testing.assert_close(found[1], found[0])
