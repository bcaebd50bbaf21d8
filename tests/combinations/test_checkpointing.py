"""Activation checkpointing and offloading, with the Trainer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

from hf_invact import InvActConfig, patch_model
from hf_invact.memory import SavedActivations
from tests.combinations.adapters import lora, with_adapters
from tests.combinations.loops import loop
from tests.combinations.table import CHECKPOINTED, CHECKPOINTING, OFFLOADED
from tests.combinations.training import Combination, Run, compare, record
from tests.compatibility import Matrix, patched_sites
from tests.models import batch, each_model, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


@each_model
@pytest.mark.parametrize("combination", CHECKPOINTED, ids=str)
def test_checkpointing_trains_as_without_the_flag_and_keeps_the_checkpoints(
    combination: Combination, name: str, tmp_path: Path, matrix: Matrix
) -> None:
    plain, patched = compare(combination, name, tmp_path)
    if outside := _patched_outside_of_layers(patched):
        assert patched.saved_bytes < plain.saved_bytes, outside
    else:
        assert patched.saved_bytes == plain.saved_bytes
    record(matrix, combination, name, plain, patched)


def _patched_outside_of_layers(run: Run) -> list[str]:
    """The last norm, and the activation of a head."""
    assert run.report is not None
    return [site.name for site in run.report.sites if site.is_patched and not re.search(r"\.\d+\.", site.name)]


@each_model
def test_less_is_kept_while_a_layer_is_recomputed(name: str) -> None:
    """Observed with reentrant checkpointing, whose second forward pass is an ordinary one."""

    def most_kept(flag: bool) -> int:
        model = tiny_model(name)
        if flag:
            patch_model(model)
        model.gradient_checkpointing_enable({"use_reentrant": True})
        model.enable_input_require_grads()
        with SavedActivations(model) as saved:
            model(**batch(model)).loss.backward()
        return saved.total_bytes

    assert most_kept(True) < most_kept(False)


class Offloading:
    """`save_on_cpu`, counting the bytes that it copies in the first forward pass, parameters excluded."""

    def __init__(self) -> None:
        self.copied: list[int] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        hooks = save_on_cpu(pin_memory=False)
        self.copied.append(0)

        def pack(tensor: Tensor) -> Any:
            if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
                self.copied[-1] += tensor.numel() * tensor.element_size()
            return hooks.pack_hook(tensor)

        with saved_tensors_hooks(pack, hooks.unpack_hook):
            yield


@each_model
def test_adapters_train_the_same_while_what_is_saved_is_offloaded(name: str) -> None:
    def train(flag: bool) -> Run:
        model = with_adapters(tiny_model(name), lora(name, dropout=0.1))
        if flag:
            assert patch_model(model, InvActConfig(sites=("adapter",))).patched > 0
        return loop(model, False, around_forward=save_on_cpu)

    plain, patched = train(False), train(True)
    assert patched.losses == plain.losses
    assert len(plain.gradients) > 10
    torch.testing.assert_close(patched.gradients, plain.gradients, rtol=0, atol=0)


@each_model
def test_offloading(name: str, tmp_path: Path, matrix: Matrix) -> None:
    offloading = Offloading()
    combination = Combination(
        CHECKPOINTING, "`torch.autograd.graph.save_on_cpu`", tiny_model, around_forward=offloading, note=OFFLOADED
    )
    plain, patched = compare(combination, name, tmp_path)
    assert len(set(offloading.copied[: len(plain.losses)])) == 1, "the steps copy different amounts"
    plain.saved_bytes, patched.saved_bytes = offloading.copied[0], offloading.copied[-1]
    assert (patched.saved_bytes < plain.saved_bytes) == (name != "bert")
    assert patched.saved_bytes < 1.03 * plain.saved_bytes
    assert patched_sites(patched.report)["plan"] != "left alone"
    record(matrix, combination, name, plain, patched)
