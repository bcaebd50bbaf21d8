"""Other replacements of the same part of the model are refused before the first step."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from hf_invact import InvertedActivationsCallback, PatchingError, patch_model
from tests.compatibility import Matrix
from tests.models import each_model, tiny_model
from tests.trainer.helpers import SAVED, Witness, arguments, installed_hooks, is_patched, losses, make_trainer

WAYS_OUT = ("hf_invact", "liger_kernel_config={'swiglu': False", "use_kernels=False", "InvActConfig(exclude=[...])")


def forward(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    return result


def by_a_user(model: PreTrainedModel) -> None:
    for layer in model.model.layers:
        layer.mlp.forward = types.MethodType(forward, layer.mlp)


def by_liger(model: PreTrainedModel) -> None:
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(model=model)


def by_ligers_method(model: PreTrainedModel) -> None:
    from liger_kernel.transformers import LigerSwiGLUMLP

    for layer in model.model.layers:
        layer.mlp.forward = types.MethodType(LigerSwiGLUMLP.forward, layer.mlp)


def by_hub_kernels(model: PreTrainedModel) -> None:
    """As Transformers does with `use_kernels=True`, here with a kernel that needs no hub."""
    kernels = pytest.importorskip("kernels", minversion="0.15")  # the first with CPU kernels

    @kernels.use_kernel_forward_from_hub("GatedMLP")
    class Extensible(modeling_llama.LlamaMLP):
        pass

    class Kernel(nn.Module):
        has_backward = True
        forward = forward

    class Repository:
        def load(self) -> type[nn.Module]:
            return Kernel

    for layer in model.model.layers:
        layer.mlp.__class__ = Extensible
    with kernels.use_kernel_mapping({"GatedMLP": {"cpu": Repository()}}):
        kernels.kernelize(model, mode=kernels.Mode.TRAINING, device="cpu")


REPLACEMENTS: dict[str, tuple[Callable[[PreTrainedModel], None], str]] = {
    "user": (by_a_user, "tests.trainer.test_conflicts.forward"),
    "liger": (by_liger, "liger_kernel.transformers.swiglu.LigerSwiGLUMLP.forward"),
    "liger's method": (by_ligers_method, "liger_kernel.transformers.swiglu.LigerSwiGLUMLP.forward"),
    "hub kernels": (by_hub_kernels, "tests.trainer.test_conflicts.forward"),
}
each_replacement = pytest.mark.parametrize(("replace", "by"), REPLACEMENTS.values(), ids=REPLACEMENTS)


def assert_refused(error: PatchingError, by: str) -> None:
    message = str(error)
    assert message.startswith("model.layers.0.mlp: another library has replaced the forward of this ")
    assert [part for part in (f" by {by}, ", *WAYS_OUT) if part not in message] == []


@pytest.mark.usefixtures("liger")
@each_replacement
def test_refused_when_the_trainer_is_made(replace: Callable[[PreTrainedModel], None], by: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    replace(model)
    args = arguments(tmp_path, use_inverted_activations=True)
    with pytest.raises(PatchingError) as error:
        make_trainer(model, args, InvertedActivationsCallback())
    assert_refused(error.value, by)
    assert not is_patched(model)


@pytest.mark.usefixtures("liger")
@each_replacement
def test_refused_when_training_begins(replace: Callable[[PreTrainedModel], None], by: str, tmp_path: Path) -> None:
    model, witness = tiny_model("llama"), Witness()
    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(model, args, InvertedActivationsCallback(), witness)
    assert is_patched(model)
    replace(model)
    with pytest.raises(PatchingError) as error:
        trainer.train()
    assert_refused(error.value, by)
    assert witness.patched == {}
    assert not is_patched(model)
    assert installed_hooks(model) == 0


def test_refused_for_the_fresh_model_of_model_init(tmp_path: Path) -> None:
    models: list[PreTrainedModel] = []

    def model_init() -> PreTrainedModel:
        models.append(tiny_model("llama"))
        if len(models) == 2:
            by_a_user(models[1])
        return models[-1]

    args = arguments(tmp_path, use_inverted_activations=True)
    trainer = make_trainer(None, args, InvertedActivationsCallback(), model_init=model_init)
    with pytest.raises(PatchingError, match=r"replaced the forward of this LlamaMLP"):
        trainer.train()
    assert len(models) == 2
    assert not is_patched(models[1])


def test_trains_once_the_replacement_is_undone(tmp_path: Path) -> None:
    args = arguments(tmp_path, use_inverted_activations=True)
    model, witness = tiny_model("llama"), Witness()
    trainer = make_trainer(model, args, InvertedActivationsCallback(), witness)
    by_a_user(model)
    with pytest.raises(PatchingError):
        trainer.train()
    for layer in model.model.layers:
        del layer.mlp.forward
    trainer.train()
    assert witness.patched == {"train_begin": [True], "step": [True] * 3, "train_end": [False]}
    fresh = make_trainer(tiny_model("llama"), args, InvertedActivationsCallback())
    fresh.train()
    assert losses(trainer) == losses(fresh)


REFUSED = "Refused with an error that names both flags and says what to do, since each replaces the MLP's activation."
WITHOUT_MLPS = (
    "With `liger_kernel_config={'swiglu': False, 'geglu': False}`. The tests run the part of it that runs on a CPU."
)
# Kernels that do not run in Triton's interpreter.
NO_KERNEL: dict[str, Any] = {"rope": False, "rms_norm": False, "fused_linear_cross_entropy": False}


@pytest.mark.usefixtures("liger")  # Transformers 5.0 and 5.1 apply it while the Trainer is made
@pytest.mark.parametrize("config", [None, {}, {"rope": False}, {"swiglu": True}], ids=str)
@each_model
def test_the_flag_of_liger_is_refused_at_once(
    name: str, config: dict[str, Any] | None, tmp_path: Path, matrix: Matrix
) -> None:
    model = tiny_model(name)
    args = arguments(tmp_path, use_inverted_activations=True, use_liger_kernel=True, liger_kernel_config=config)
    with pytest.raises(ValueError, match=r"use_liger_kernel and use_inverted_activations.*=\{'swiglu': False, 'geglu'"):
        make_trainer(model, args, InvertedActivationsCallback())
    assert not is_patched(model)
    matrix.record("Other libraries", "Liger, `use_liger_kernel=True`", name, plan="refused", note=REFUSED)


@pytest.mark.usefixtures("liger")
@pytest.mark.parametrize("config", [{"swiglu": False}, {"swiglu": False, "geglu": False}], ids=str)
def test_the_flag_of_liger_without_its_mlps_is_fine(config: dict[str, Any], tmp_path: Path, matrix: Matrix) -> None:
    def train(flag: bool) -> tuple[list[float], int]:
        options = {"use_liger_kernel": True, "liger_kernel_config": {**NO_KERNEL, **config}}
        args = arguments(tmp_path, use_inverted_activations=flag, **options)
        trainer = make_trainer(tiny_model("llama"), args, InvertedActivationsCallback())
        trainer.train()
        return losses(trainer), trainer.state.log_history[0][SAVED]

    (plain, before), (patched, after) = train(False), train(True)
    assert patched == pytest.approx(plain, rel=1e-5)
    assert after < before
    sizes = {"plain_bytes": before, "patched_bytes": after}
    matrix.record("Other libraries", "Liger without its MLPs", "llama", **sizes, plan="gate-output", note=WITHOUT_MLPS)


@pytest.mark.usefixtures("liger")
def test_liger_without_the_other_models_mlps_is_refused_when_training_begins_at_the_latest(tmp_path: Path) -> None:
    model = tiny_model("llama")
    options = {"use_liger_kernel": True, "liger_kernel_config": {"geglu": False}}  # of Gemma
    args = arguments(tmp_path, use_inverted_activations=True, **options)
    with pytest.raises(PatchingError) as error:
        make_trainer(model, args, InvertedActivationsCallback()).train()
    assert_refused(error.value, "liger_kernel.transformers.swiglu.LigerSwiGLUMLP.forward")
    assert not is_patched(model)


def test_where_the_flag_is_off_nothing_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    by_a_user(model)
    trainer = make_trainer(model, arguments(tmp_path), InvertedActivationsCallback())
    trainer.train()
    assert len(losses(trainer)) == 3


def test_a_model_that_is_patched_by_hand_is_patched_once(tmp_path: Path) -> None:
    args = arguments(tmp_path, use_inverted_activations=True)
    fresh = make_trainer(tiny_model("llama"), args, InvertedActivationsCallback())
    fresh.train()
    model = tiny_model("llama")
    patch_model(model)
    trainer = make_trainer(model, args, InvertedActivationsCallback())
    trainer.train()
    assert losses(trainer) == losses(fresh)
    assert not is_patched(model)
