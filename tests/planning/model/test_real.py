"""Plans of real models, which are copied without memory and left as they are."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_invact import InvActConfig, Lora, MemoryPlan, PlanningError, patch_model, plan_memory
from hf_invact.planning import make_optimizer, predict_peak
from hf_invact.planning.batch import make_batch
from tests.planning.small import small_config, small_model

SEQUENCES, TOKENS = 2, 16
DROPOUT = Lora(r=4, dropout=0.1)

each_model = pytest.mark.parametrize(
    ("model_type", "lora"),
    [
        ("gpt2", None),
        ("t5", None),
        ("llama", DROPOUT),
        pytest.param("bert", DROPOUT, marks=pytest.mark.slow),
        pytest.param("mixtral", None, marks=pytest.mark.slow),
        pytest.param("gemma2", None, marks=pytest.mark.slow),
    ],
    ids=str,
)


def planned(model: Any, **options: Any) -> MemoryPlan:
    return plan_memory(model, SEQUENCES, TOKENS, optimizer="adamw", **options)


def state(model: nn.Module) -> list[object]:
    """The classes and the attributes of all modules, by identity, and the values of collections among them."""
    found: list[object] = [vars(model.config).copy()]
    for module in model.modules():
        values = [
            (name, value, [*value.items()] if isinstance(value, dict) else ()) for name, value in vars(module).items()
        ]
        found.append(
            (
                type(module),
                [(name, id(value), [(key, id(each)) for key, each in items]) for name, value, items in values],
            )
        )
    return found


def differences(one: MemoryPlan, other: MemoryPlan) -> set[str]:
    names = [field.name for field in dataclasses.fields(MemoryPlan)]
    return {name for name in names if getattr(one, name) != getattr(other, name)}


@each_model
def test_a_model_is_planned_as_its_config_is(model_type: str, lora: Lora | None) -> None:
    attention = "eager" if model_type in ("gemma2", "t5") else "sdpa"  # not all versions have another
    expected = planned(small_config(model_type), dtype="float32", lora=lora, device="cpu", attention=attention)
    model = small_model(model_type, attention=attention, lora=lora)
    before = state(model)
    assert differences(planned(model), expected) <= {"model", "lora"}
    assert state(model) == before


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_peaks_are_those_of_a_step(checkpointed: bool) -> None:
    model = small_model("llama", lora=DROPOUT)
    if checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    plan = planned(model)

    def measured() -> Any:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return predict_peak(model, make_batch(model, SEQUENCES, TOKENS), make_optimizer("adamw", trained), device="cpu")

    assert measured() == plan.plain_peak
    assert patch_model(model) == plan.report
    assert measured() == plan.patched_peak


CHANGES: dict[str, Callable[[PreTrainedModel], object]] = {
    "patched": patch_model,
    "partly patched and checkpointed": lambda model: patch_model(
        model, InvActConfig(sites=("norm",), checkpoint_layers=1)
    ),
    "in evaluation mode": nn.Module.eval,
    "with a cache": lambda model: setattr(model.config, "use_cache", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_does_not_matter(change: Callable[[PreTrainedModel], object]) -> None:
    model = small_model("llama")
    expected = planned(model)
    change(model)
    before = state(model)
    assert not differences(planned(model), expected)
    assert state(model) == before


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name has changed in Transformers 5.23
def test_hooks_on_the_embeddings_stay_and_are_planned() -> None:
    model = small_model("llama", lora=DROPOUT)
    model.enable_input_require_grads()
    plan = planned(model)
    assert model.get_input_embeddings()._forward_hooks
    model.disable_input_require_grads()
    assert plan.plain_bytes > planned(model).plain_bytes


def test_a_wrapper_is_planned_as_its_model() -> None:
    model = small_model("llama", lora=DROPOUT)
    peft = pytest.importorskip("peft")
    wrapped = peft.PeftModel(small_model("llama"), peft.LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"))
    assert not differences(planned(wrapped), planned(model))


def test_a_forward_that_is_wrapped_is_not_run_on_the_model_itself() -> None:
    model = small_model("llama")
    expected, original = planned(model), model.forward

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    model.forward = types.MethodType(wrapper, model)
    plan = planned(model)
    assert differences(plan, expected) == {"notes"}
    assert plan.notes == (
        "The model's forward is wrapped by tests.planning.model.test_real.wrapper; that of its class is planned, which "
        "may keep more.",
    )
    assert all(weight.grad is None for weight in model.parameters())


def test_dtypes_and_devices() -> None:
    model = small_model("llama", "bfloat16", "eager")
    plan = planned(model)
    assert (plan.dtype, plan.attention, plan.device) == ("bfloat16", "eager", "cpu")
    assert planned(model, device="cuda").device == "cuda"


@pytest.mark.parametrize(
    "option", [{"dtype": "bfloat16"}, {"lora": DROPOUT}, {"attention": "sdpa"}, {"quantize": "4bit"}], ids=str
)
def test_options_that_a_model_has_itself_are_refused(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"{name}=.* is for configs; a model is planned with the {name} that it has"):
        planned(small_model("llama"), **option)


class WithHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = small_model("llama"), nn.Linear(4, 4)


@pytest.mark.parametrize("make", [WithHead, partial(nn.Linear, 4, 4)], ids=["a head of its own", "no model"])
def test_what_is_no_model_of_transformers(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(PlanningError, match="is no model of Transformers, nor a wrapper around one"):
        planned(make())


def test_half_of_the_weights_in_another_dtype() -> None:
    model = small_model("llama", "bfloat16")
    model.get_output_embeddings().to(torch.float32)
    assert planned(model).dtype == "bfloat16"
