"""If weights are sharded or missing, a copy without memory is measured, with the same result as the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing._internal.distributed.fake_pg import FakeStore

from hf_invact import PatchReport, patch_model
from tests.models import ACTIVATIONS, each_model, tiny_model

COPIED = "measured on a copy without memory: its weights are sharded or missing"
RULES = {
    "gpt2": ["output"] * 2,
    "bert": ["output"] * 2 + [None],  # its head is not registered
    "mistral": ["gate-output"] * 2,
    "llama": ["gate-output"] * 2,
}


@pytest.fixture
def four_processes() -> Iterator[None]:
    """This process as the first of four, of which the others do not exist: any communication would hang."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield
    torch.distributed.destroy_process_group()


def figures(report: PatchReport) -> list[tuple[Any, ...]]:
    return [(site.name, site.plan, site.before, site.after) for site in report.sites]


def assert_measured_on_a_copy(report: PatchReport, expected: PatchReport) -> None:
    assert figures(report) == figures(expected)
    assert [site.reason for site in report.sites] == [COPIED] * len(report.sites)


def tensor_parallel(model: nn.Module, mesh: Any) -> None:
    styles = {"gate_proj": ColwiseParallel(), "up_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in model.model.layers:
        parallelize_module(layer.mlp, mesh, styles)


@each_model
def test_fsdp2_counts_as_with_whole_weights(name: str, four_processes: None) -> None:
    model = tiny_model(name)
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    expected = patch_model(tiny_model(name), ACTIVATIONS)
    assert_measured_on_a_copy(patch_model(model, ACTIVATIONS), expected)


def test_fsdp2_counts_in_the_precision_that_it_computes_in(four_processes: None) -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    assert_measured_on_a_copy(patch_model(model, ACTIVATIONS), patch_model(tiny_model("llama").bfloat16(), ACTIVATIONS))


def test_tensor_parallelism_counts_a_processs_share(four_processes: None) -> None:
    model = tiny_model("llama")
    tensor_parallel(model, init_device_mesh("cpu", (4,)))
    assert_measured_on_a_copy(
        patch_model(model, ACTIVATIONS), patch_model(tiny_model("llama", intermediate_size=24), ACTIVATIONS)
    )


def test_tensor_parallelism_within_fsdp2(four_processes: None) -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = tiny_model("llama")
    tensor_parallel(model, mesh["tensor"])
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["data"])
    assert_measured_on_a_copy(
        patch_model(model, ACTIVATIONS), patch_model(tiny_model("llama", intermediate_size=48), ACTIVATIONS)
    )


def test_if_shares_differ_between_processes_the_first_ones_counts(four_processes: None) -> None:
    """So that all processes make the same decision."""
    mesh, model = init_device_mesh("cpu", (4,)), tiny_model("llama", intermediate_size=90)
    tensor_parallel(model, mesh)
    assert_measured_on_a_copy(
        patch_model(model, ACTIVATIONS), patch_model(tiny_model("llama", intermediate_size=23), ACTIVATIONS)
    )


@each_model
def test_missing_weights_count_as_those_of_other_processes(name: str) -> None:
    """Some loaders fill the weights of one process, and leave those of others on the meta device."""
    with torch.device("meta"):
        model = tiny_model(name)
    expected = patch_model(tiny_model(name), ACTIVATIONS)
    assert_measured_on_a_copy(patch_model(model, ACTIVATIONS), expected)


@pytest.mark.parametrize("kept_whole", [0, 10**6], ids=["partitioned", "kept whole"])
@each_model
def test_zero_3_counts_as_with_whole_weights(name: str, kept_whole: int) -> None:
    """DeepSpeed marks every parameter, empties it, and keeps small ones whole."""
    model = tiny_model(name)
    for number, parameter in enumerate(model.parameters()):
        parameter.ds_id, parameter.ds_shape = number, parameter.shape
        if parameter.numel() > kept_whole:
            parameter.data = torch.empty(0)
    expected = patch_model(tiny_model(name), ACTIVATIONS)
    assert_measured_on_a_copy(patch_model(model, ACTIVATIONS), expected)


@each_model
def test_weights_of_unknown_size_are_decided_by_rule(name: str) -> None:
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    sites = patch_model(model, ACTIVATIONS).sites
    assert [site.plan for site in sites] == RULES[name]
    assert all("not measured" in site.reason and "its weights are sharded or missing" in site.reason for site in sites)


class Peculiar(nn.Module):
    """Changes itself in its forward pass, refers to its parts in more than one way, and ties weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.out = nn.Linear(8, 32, bias=False)
        self.out.weight = self.up.weight
        self.steps, self.seen = [self.up], []
        self.project = self._project
        self.also = {"scale": self.up.bias, "block": self}

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        result: Tensor = self.project(self.act(self.steps[0](x)))
        return result

    def _project(self, x: Tensor) -> Tensor:
        return self.out(self.also["block"].down(x)) * self.also["scale"]


def test_a_copy_leaves_the_model_as_it_is() -> None:
    with torch.device("meta"):
        block = Peculiar()
    attributes, called = dict(vars(block)), []
    block.up.register_forward_hook(lambda module, args, output: called.append(module))
    assert_measured_on_a_copy(patch_model(block, ACTIVATIONS), patch_model(Peculiar(), ACTIVATIONS))
    assert vars(block).keys() == attributes.keys()
    assert block.seen == called == []
    assert block.steps[0] is block.up
    assert block.also == {"scale": block.up.bias, "block": block}


class Layer(nn.Module):
    """Holds the consumer of the activation whose output its block returns."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 32), nn.GELU())
        self.down = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(self.block(x))
        return result


def test_a_forward_that_was_replaced_is_not_run_on_a_copy() -> None:
    """It would run the original module, which may communicate."""
    with torch.device("meta"):
        layer = Layer()
    assert patch_model(layer, ACTIVATIONS).patched == 1
    ran = []
    layer.forward = lambda x: ran.append(x) or Layer.forward(layer, x)
    (site,) = patch_model(nn.ModuleList([layer]), replace(ACTIVATIONS, plan="input")).sites
    assert site.reason.startswith("as the config says, not measured: its weights are sharded or missing, and of a copy")
    assert ran == []


def test_active_autocast_is_taken_into_account() -> None:
    with torch.device("meta"):
        model = tiny_model("llama")
    with torch.autocast("cpu", torch.bfloat16):
        expected = patch_model(tiny_model("llama"), ACTIVATIONS)
        assert_measured_on_a_copy(patch_model(model, ACTIVATIONS), expected)
