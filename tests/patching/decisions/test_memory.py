"""A model is measured again only if something has changed that the decisions depend on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from hf_invact import InvActConfig, InvertedActivationsCallback, unpatch_model
from hf_invact.patching.decisions import deciding
from hf_invact.patching.decisions.memory import Memory
from hf_invact.patching.patch import patch
from tests.models import tiny_model
from tests.trainer.helpers import arguments, make_trainer

DEFAULT = InvActConfig()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that were measured."""
    found: list[nn.Module] = []
    by_kind = deciding._by_kind

    def counted(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        found.append(model)
        return by_kind(model, *args, **kwargs)

    monkeypatch.setattr(deciding, "_by_kind", counted)
    return found


def replace_forward(model: Any) -> None:
    """As Accelerate does for autocast."""
    forward = model.forward.__func__
    model.forward = MethodType(lambda self, *args, **kwargs: forward(self, *args, **kwargs), model)


def add_adapters(model: nn.Module) -> None:
    inject_adapter_in_model(LoraConfig(target_modules=["up_proj"]), model)


UNCHANGED: dict[str, Callable[[Any], object]] = {
    "nothing": lambda model: None,
    "unpatched in between": unpatch_model,
    "mode": lambda model: model.eval(),
    "values of weights": lambda model: model.lm_head.weight.data.zero_(),
    "checkpointing": lambda model: setattr(model.model.layers[0], "gradient_checkpointing", True),
    "caches": lambda model: setattr(model.config, "use_cache", False),
    "what a classifier notes": lambda model: setattr(model.config, "problem_type", "regression"),
    "the model's own forward": replace_forward,
}
CHANGED: dict[str, Callable[[Any], object]] = {
    "attention": lambda model: model.set_attn_implementation("eager"),
    "a setting of a layer": lambda model: setattr(model.model.layers[1].self_attn, "attention_dropout", 0.5),
    "frozen weights": lambda model: model.model.layers[0].requires_grad_(False),
    "dtype": lambda model: model.bfloat16(),
    "a hook": lambda model: model.model.layers[1].mlp.register_forward_hook(lambda *args: None),
    "a module": lambda model: setattr(model.model.layers[1].mlp, "act_fn", nn.GELU()),
    "adapters": add_adapters,
}
CONFIGS = {
    "autocast": InvActConfig(autocast_dtype=torch.bfloat16),
    "plan": InvActConfig(plan="gate-inputs"),
    "sites": InvActConfig(sites=("adapter", "activation"), exclude=("*.0.*",)),
}


@pytest.mark.parametrize("name", [*UNCHANGED, *CHANGED])
def test_a_model_is_measured_again_where_it_has_changed(name: str, measured: list[nn.Module]) -> None:
    model, memory = tiny_model("llama"), Memory()
    first = patch(model, DEFAULT, memory)
    (UNCHANGED | CHANGED)[name](model)
    second = patch(model, DEFAULT, memory)
    assert measured == [model] * (2 if name in CHANGED else 1)
    if name in UNCHANGED:
        assert second == first
    unpatch_model(model)
    assert patch(model, DEFAULT, Memory()) == second


@pytest.mark.parametrize("name", [*CONFIGS, "active autocast"])
def test_a_model_is_measured_again_for_another_config(name: str, measured: list[nn.Module]) -> None:
    model, memory = tiny_model("llama"), Memory()
    patch(model, DEFAULT, memory)
    config = CONFIGS.get(name, DEFAULT)
    with nullcontext() if name in CONFIGS else torch.autocast("cpu", torch.bfloat16):
        found = patch(model, config, memory)
        assert len(measured) == 2
        assert found == patch(model, config, Memory())
    patch(model, DEFAULT, memory)
    assert len(measured) == 3  # not for the first config, which is remembered


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_a_trainer_measures_once(precision: dict[str, bool], measured: list[nn.Module], tmp_path: Path) -> None:
    model = tiny_model("llama")
    args = arguments(tmp_path, use_inverted_activations=True, use_cpu=True, **precision)
    trainer = make_trainer(model, args, InvertedActivationsCallback())
    assert measured == [model]
    trainer.train()
    assert measured == [model]


def test_an_object_at_the_place_of_one_that_is_gone_is_another(measured: list[nn.Module]) -> None:
    class Table:
        """Stays the same object for the signature, whatever it holds."""

    model, memory = tiny_model("llama"), Memory()
    attention = model.model.layers[0].self_attn
    attention.table = Table()
    patch(model, DEFAULT, memory)
    place = id(attention.table)
    del attention.table
    others = [Table()]
    while id(others[-1]) != place and len(others) < 100_000:
        others.append(Table())
    attention.table = others[-1]
    assert id(attention.table) == place
    patch(model, DEFAULT, memory)
    assert len(measured) == 2
