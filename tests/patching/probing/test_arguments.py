"""The arguments that models pass to their modules: those of a whole forward pass, though most of it is not run."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import PretrainedConfig, PreTrainedModel, ResNetConfig

from hf_invact.patching.probing.arguments import Calls, calls
from hf_invact.patching.probing.signature import signature
from hf_invact.patching.weights.fake_copy import without_memory
from hf_invact.patching.weights.sharding import ShardedError
from tests.models import tiny_model
from tests.patching.probing.modalities import (
    CASES,
    PARTS,
    STAGES,
    Model,
    assert_equal,
    fail,
    from_config,
    kinds_of,
    named,
    of_a_whole_run,
)


def assert_same(one: Calls, other: Calls) -> None:
    assert one.failure == other.failure
    assert one.found.keys() == other.found.keys()
    for kind, call in one.found.items():
        assert_equal((call.args, call.kwargs), (other.found[kind].args, other.found[kind].kwargs))


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls_are_those_of_a_whole_forward_pass(name: str) -> None:
    model = CASES[name]()
    kinds = kinds_of(model)
    result = calls(model, kinds, samples=2)
    whole = of_a_whole_run(model, kinds, samples=2)
    assert result.failure is None
    assert result.found.keys() == whole.keys() == set(kinds.values())
    for kind, arguments in whole.items():
        # Values differ because of dropout, and after a layer that was not run.
        assert_equal((result.found[kind].args, result.found[kind].kwargs), arguments, values=name == "mistral")


@pytest.mark.parametrize("make", PARTS.values(), ids=list(PARTS))
def test_parts_that_text_alone_does_not_call_are_run_too(make: Callable[[], PreTrainedModel]) -> None:
    model = make()
    kinds = kinds_of(model)
    result = calls(model, kinds, samples=1)
    assert result.failure is None
    assert result.found.keys() == set(kinds.values())


def test_one_more_sample_enlarges_only_the_first_dimension() -> None:
    model = tiny_model("mistral")
    one, two = (calls(model, named(model, "MistralMLP"), samples).found["MistralMLP"].args[0] for samples in (1, 2))
    assert (one.shape, two.shape) == ((1, 4, 32), (2, 4, 32))


def test_calls_before_an_exception_are_kept() -> None:
    model = Model(PretrainedConfig(way="raises"))
    kinds: dict[nn.Module, Hashable] = {**named(model, "Layer"), model.last: "last"}
    result = calls(model, kinds, samples=1)
    assert list(result.found) == ["Layer"]
    assert result.failure == ("not called: Linear; Model.forward(input_ids) raised ValueError: no second layer today")


def test_the_lack_of_a_transformers_model_is_reported() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    assert calls(module, {module[0]: 0}, 1) == Calls({}, "Sequential is no model of Transformers, and holds none")


class Unheard(Model):
    def forward(self, bar_codes: Tensor) -> Tensor:  # type: ignore[override]
        return bar_codes


def test_unknown_inputs_are_reported() -> None:
    model = Unheard(PretrainedConfig(way="plain"))
    result = calls(model, named(model, "Layer"), 1)
    assert not result.found
    assert result.failure is not None
    assert result.failure.startswith("not called: Layer; Unheard.forward requires bar_codes: only input_ids")


class PassesOn(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return fail()


@pytest.mark.parametrize(
    "wrap",
    [PassesOn, torch.compile, lambda model: nn.Sequential(model, nn.Tanh()), lambda model: PassesOn(PassesOn(model))],
    ids=["wrapper", "compiled", "container", "two wrappers"],
)
def test_a_model_is_found_within_what_wraps_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny_model("bert")
    expected = calls(model, named(model, "BertLayer"), 1)
    assert_same(calls(wrap(model), named(model, "BertLayer"), 1), expected)


@pytest.mark.parametrize("name", ["bert", "mistral", "gpt2"])
def test_the_call_of_a_frozen_model_with_adapters_needs_a_gradient(name: str) -> None:
    model = get_peft_model(tiny_model(name), LoraConfig(target_modules="all-linear", fan_in_fan_out=name == "gpt2"))
    layer = {"bert": "BertLayer", "mistral": "MistralDecoderLayer", "gpt2": "GPT2Block"}[name]
    call = calls(model, named(model, layer), 1).found[layer]
    # The first layer's input needs no gradient, since the embeddings are frozen.
    assert any(call.needs_gradient)
    leaves = call.arguments().leaves
    assert [leaf.shape for leaf in leaves] == [(1, 4, 32)]


def state(model: nn.Module) -> Iterator[object]:
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            yield name, attribute, id(value)
            if isinstance(value, (dict, list)):
                yield [*(value.items() if isinstance(value, dict) else value)]
    for name, tensor in model.state_dict(keep_vars=True).items():
        yield name, tensor.data_ptr(), tensor.tolist(), tensor.requires_grad, tensor.grad is None


@pytest.mark.parametrize(
    "make",
    [*(CASES[name] for name in ("bert", "wav2vec2", "bart")), lambda: from_config(ResNetConfig(**STAGES))],
    ids=["bert", "wav2vec2", "bart", "resnet"],
)
def test_it_leaves_no_trace_and_is_repeatable(make: Callable[[], PreTrainedModel]) -> None:
    model = make().eval()
    kinds = kinds_of(model) or {module: "norm" for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    torch.manual_seed(3)
    before, config = list(state(model)), copy.deepcopy(model.config.to_dict())
    numbers = torch.get_rng_state(), random.getstate()
    first = calls(model, kinds, 2)
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[1]
    assert repr(list(state(model))) == repr(before)
    assert model.config.to_dict() == config
    torch.manual_seed(4)
    assert_same(calls(model, kinds, 2), first)


@pytest.mark.parametrize("name", ["bert", "wav2vec2", "whisper", "mixtral"])
def test_with_missing_weights_a_copy_is_called_with_the_same_shapes(name: str) -> None:
    model = CASES[name]()
    kinds = {path: signature(module) for path, module in model.named_modules() if module in kinds_of(model)}
    meta = copy.deepcopy(model).to("meta")
    with pytest.raises(ShardedError):
        calls(meta, {meta.get_submodule(path): kind for path, kind in kinds.items()}, 1)

    def probe(whole: nn.Module) -> Calls:
        return calls(whole, {whole.get_submodule(path): kind for path, kind in kinds.items()}, 1)

    expected = probe(model).found
    with without_memory(meta) as whole:
        found = probe(whole).found
    assert found.keys() == expected.keys()
    for kind, call in found.items():
        assert shapes(call.args) == shapes(expected[kind].args)


def shapes(args: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [
        (each.shape, each.dtype) for each in tree_leaves(args) if isinstance(each, Tensor) and each.is_floating_point()
    ]


def test_it_runs_under_autocast() -> None:
    model = tiny_model("bert")
    kinds = named(model, "BertOutput")
    widened, residual = calls(model, kinds, 1, torch.bfloat16).found["BertOutput"].args
    assert (widened.dtype, residual.dtype) == (torch.bfloat16, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(model, kinds, 1).found["BertOutput"].args[0].dtype is torch.bfloat16
    assert calls(model, kinds, 1).found["BertOutput"].args[0].dtype is torch.float32


def test_hidden_states_that_a_model_collects_with_hooks_are_available() -> None:
    # LLaVA's projector gets those of the second to last layer.
    model = PARTS["llava"]()
    found = calls(model, named(model, "LlavaMultiModalProjector"), 2).found
    assert found["LlavaMultiModalProjector"].args[0].shape == (2, 4, 32)
