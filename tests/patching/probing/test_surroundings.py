"""Which modules around a block are tried: wrappers do not count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper, offload_wrapper
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hf_invact import PatchReport, patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.patching.probing.surroundings import surroundings
from tests.models import ACTIVATIONS, batch, tiny_model


class Inner(nn.Module):
    """A projection and its activation, without its consumer."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.act = nn.Linear(8, 32), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.dense(x))
        return y


class Middle(nn.Module):
    """Built like the modules around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(8), inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(self.norm(x))
        return y


class Outer(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.inner(x))
        return y


class Wrapper(nn.Module):
    """As users write it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.module(x)
        return y


def plans(model: nn.Module) -> list[tuple[str | None, int | None, int | None]]:
    return [(site.plan, site.before, site.after) for site in patch_model(model, ACTIVATIONS).sites]


PLAIN = plans(nn.ModuleList([Outer(Middle(Inner()))]))


def test_two_levels_around_a_block_are_tried_and_no_third() -> None:
    assert PLAIN[0][0] == "output"
    (site,) = patch_model(nn.ModuleList([Outer(Middle(Middle(Inner())))]), ACTIVATIONS).sites
    assert site.reason.startswith("left alone: not measured (what uses the result of ")


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        checkpoint_wrapper,
        offload_wrapper,
        Wrapper,
        nn.Sequential,
        lambda module: Wrapper(nn.ModuleList([module])[0]),
        lambda module: torch.compile(checkpoint_wrapper(Wrapper(nn.Sequential(module)))),
    ],
    ids=["compiled", "checkpointed", "offloaded", "of a user", "sequential", "list", "nested"],
)
def test_wrappers_do_not_count_as_levels(wrap: Callable[..., nn.Module]) -> None:
    assert plans(nn.ModuleList([wrap(Outer(wrap(Middle(wrap(Inner())))))])) == PLAIN


def test_a_scripted_module_beside_a_block() -> None:
    assert plans(nn.ModuleList([Outer(Middle(Inner())), torch.jit.script(nn.Linear(8, 8))])) == PLAIN


def test_a_layer_that_takes_any_arguments_is_a_level() -> None:
    class Layer(Outer):
        def forward(self, x: Tensor, *args: Any) -> Tensor:
            return super().forward(x)

    assert plans(nn.ModuleList([Layer(Middle(Inner()))])) == PLAIN


def test_what_adds_nothing_is_not_run() -> None:
    """It may communicate, or compile."""

    class Engine(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: Any) -> Any:
            raise AssertionError("runs the engine")

    model = Engine(nn.Sequential(Outer(Inner())))
    assert [type(each.module).__name__ for each in surroundings(model, "module.0.inner")] == [
        "Inner",
        "Outer",
        "Sequential",
    ]


def mixtral() -> PreTrainedModel:
    config = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(**config, intermediate_size=96, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    )


PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "lora"),
    [
        (mixtral, {"target_modules": ["q_proj"], "target_parameters": PARAMETERS[:1]}),
        (mixtral, {"target_modules": ["q_proj"], "target_parameters": PARAMETERS}),
        (lambda: tiny_model("llama"), {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]}),
        (lambda: tiny_model("gpt2"), {"target_modules": ["c_attn"], "modules_to_save": ["mlp"]}),
        (lambda: tiny_model("bert"), {"target_modules": ["query"], "modules_to_save": ["intermediate", "transform"]}),
        (lambda: tiny_model("bert"), {"target_modules": ["query"], "modules_to_save": ["layer.1"]}),
    ],
    ids=["one parameter", "two parameters", "mlp", "gpt2", "part of a layer", "layer"],
)
def test_patching_after_get_peft_model_keeps_no_more_than_before(
    make: Callable[[], PreTrainedModel], lora: dict[str, Any]
) -> None:
    def kept(before: bool | None) -> tuple[int, PatchReport | None]:
        model, report = make().train(), None
        if before:
            patch_model(model, ACTIVATIONS)
        inputs = batch(model)
        adapted = get_peft_model(model, LoraConfig(r=4, **lora))
        if before is False:
            report = patch_model(adapted, ACTIVATIONS)
        torch.manual_seed(0)
        with SavedActivations(adapted) as saved:
            adapted(**inputs)
        return saved.total_bytes, report

    sites = len(patch_model(make(), ACTIVATIONS).sites)
    plain, _ = kept(None)
    first, _ = kept(True)
    after, report = kept(False)
    assert after <= first < plain
    assert report is not None
    assert len(report.sites) == sites
    assert plain - after == report.saved_bytes_per_token * 2 * 16


@pytest.mark.filterwarnings("ignore")
def test_a_module_whose_copy_is_trained_is_a_site_again_once_the_copy_is_not_used() -> None:
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["mlp"]))
    names = [site.name for site in patch_model(adapted, ACTIVATIONS).sites]
    assert all("modules_to_save.default" in name for name in names)
    assert len(names) == 2
    with adapted.disable_adapter():
        assert len(patch_model(adapted, ACTIVATIONS).sites) == 4
    unpatch_model(adapted)
    assert not any(type(module).__name__ == "PatchedActivation" for module in adapted.modules())
