"""What is run to probe an activation: the smallest module that contains the consumer of its output."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact.patching import patch_model
from hf_invact.patching.errors import NoProbeError
from hf_invact.patching.probing.known import KnownCalls
from hf_invact.patching.probing.probe import Scope
from hf_invact.patching.probing.runs import Runs
from hf_invact.patching.probing.scopes import find_scope
from hf_invact.patching.probing.surroundings import surroundings
from hf_invact.sites.activations import Activations
from tests.models import tiny_model


def find_scope_of(model: nn.Module, block: str, attribute: str) -> Scope:
    name = f"{block}.{attribute}"
    (site,) = (site for site in Activations().find(model) if site.name == name)
    around = surroundings(model, site.holder_name)
    scope, _ = find_scope(site, around, Runs(model, KnownCalls(model, [each.module for each in around], None)))
    return scope


@pytest.mark.parametrize(
    ("name", "block", "attribute", "scope"),
    [
        ("gpt2", "transformer.h.0.mlp", "act", "GPT2MLP"),
        ("llama", "model.layers.1.mlp", "act_fn", "LlamaMLP"),
        ("bert", "bert.encoder.layer.0.intermediate", "intermediate_act_fn", "BertLayer"),
        ("bert", "cls.predictions.transform", "transform_act_fn", "BertPredictionHeadTransform"),
    ],
)
def test_scope_of_a_block(name: str, block: str, attribute: str, scope: str) -> None:
    found = find_scope_of(tiny_model(name).bfloat16(), block, attribute)
    assert type(found.module).__name__ == scope
    assert (found.tokens, found.dtype, found.device.type) == (8, torch.bfloat16, "cpu")
    assert (found.few.args[0].shape, found.many.args[0].shape) == ((2, 4, 32), (4, 4, 32))


class Inner(nn.Module):
    """A projection and its activation, without its consumer, as in BERT."""

    def __init__(self, after: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        self.dense, self.act, self.after = nn.Linear(8, 32), nn.GELU(), after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.act(self.dense(x)))


class Layer(nn.Module):
    def __init__(self, inner: Inner) -> None:
        super().__init__()
        self.inner, self.out = inner, nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.out(y[0] if isinstance(y, (tuple, list)) else y)


@pytest.mark.parametrize(
    "after",
    [lambda y: y, lambda y: (y, None), lambda y: nn.functional.dropout(y, 0.1), lambda y: y.transpose(0, 1)],
    ids=["itself", "in a tuple", "dropout", "transposed"],
)
def test_the_layer_around_is_run_where_the_block_returns_the_activation(after: Callable[[Tensor], Any]) -> None:
    model = nn.Sequential(Layer(Inner(after)), nn.Tanh())
    assert type(find_scope_of(model, "0.inner", "act").module) is Layer


class Head(nn.Module):
    """An activation and its consumer, given what a module before it has computed."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.out = nn.GELU(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.act(x))


class Around(nn.Module):
    def __init__(self, before: nn.Module) -> None:
        super().__init__()
        self.before, self.head = before, Head()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.before(x))


def test_what_makes_the_activations_input_is_run_where_it_can_be() -> None:
    """Whether something else saves that input decides what inverting saves: a tanh does, a projection does not."""
    projected, kept = (nn.Sequential(Around(each), nn.Identity()) for each in (nn.Linear(8, 8), nn.Tanh()))
    assert type(find_scope_of(projected, "0.head", "act").module) is Around
    assert [site.plan for site in patch_model(projected).sites] == ["output"]
    assert [site.reason for site in patch_model(kept).sites] == ["left alone: nothing would keep less"]


def test_what_is_given_the_activations_input_is_run_where_nothing_around_it_can_be() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("not by itself")

    around = Around(nn.Linear(8, 8))
    around.forward = fail
    assert type(find_scope_of(nn.ModuleList([around]), "0.head", "act").module) is Head


def test_a_block_whose_consumer_cannot_be_run_is_not_probed() -> None:
    class Impossible(Layer):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("not by itself")

    model = nn.Sequential(Impossible(Inner()), nn.ReLU())
    model.forward = model[0].forward
    with pytest.raises(NoProbeError, match="what uses the result of Inner cannot be run by itself"):
        find_scope_of(nn.ModuleList([model]), "0.0.inner", "act")


def test_lists_of_modules_do_not_count_as_levels() -> None:
    model = nn.ModuleDict({"a": nn.ModuleList([nn.ModuleList([nn.GELU()])]), "b": nn.Linear(8, 8)})
    with pytest.raises(NoProbeError, match="the size of its hidden states is not known"):
        find_scope_of(model, "a.0", "0")


@pytest.mark.parametrize(
    ("forward", "why"),
    [
        (lambda self, x: self.out(self.inner.dense(x)), "Layer does not call it"),
        (lambda self, x: {self.out(self.inner(x))}, "Inner cannot be run by itself: TypeError: "),
    ],
    ids=["not called", "no tensor"],
)
def test_reasons(forward: Callable[..., Any], why: str) -> None:
    inner = Inner()
    inner.forward = lambda: None
    layer = type("Layer", (Layer,), {"forward": forward})(inner)
    with pytest.raises(NoProbeError, match=f"^{re.escape(why)}"):
        find_scope_of(nn.ModuleList([layer]), "0.inner", "act")


def test_a_long_reason_is_cut_to_one_line() -> None:
    class Talkative(Layer):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("long " * 100 + "\nsecond line")

    class Silent(Inner):
        def forward(self, x: Tensor, required: dict[str, int]) -> Tensor:
            return self.after(required["nothing"])

    with pytest.raises(NoProbeError) as error:
        find_scope_of(nn.ModuleList([Talkative(Silent())]), "0.inner", "act")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_default_device_and_dtype_do_not_matter(device: str, dtype: torch.dtype) -> None:
    model = nn.ModuleList([Layer(Inner())])
    (expected,) = patch_model(model).sites
    before = torch.get_default_dtype()
    try:
        torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        (site,) = patch_model(model).sites
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(before)
    assert site == expected
    with torch.device(device):
        (site,) = patch_model(model).sites
    assert site == expected
    assert site.plan == "output"


def test_the_width_of_the_hidden_states_may_be_the_fourth_candidate() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.gate = nn.Linear(24, 8), nn.Linear(16, 8)
            self.into, self.inner, self.out = nn.Linear(32, 8), Inner(), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.inner(self.into(x)))
            return y

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.layer = SimpleNamespace(hidden_size=64), Routed()

    (site,) = patch_model(Model()).sites
    assert site.plan == "output", site.reason
