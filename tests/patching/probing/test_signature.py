"""Blocks share a probe if they differ in nothing that a forward pass may look at."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact import patch_model
from hf_invact.patching.decisions import places
from hf_invact.patching.probing.signature import signature
from hf_invact.sites import Site
from tests.models import ACTIVATIONS, MODEL_NAMES, tiny_model
from tests.patching.structures import STRUCTURES

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Block(nn.Module):
    def __init__(self, setting: Any = None) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.setting = setting

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.up(x))
        if self.setting == "in place":
            h.clamp_(max=2.0)
        y: Tensor = self.down(h)
        return y


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The blocks for which a scope was searched, that is, which did not share a probe."""
    found: list[str] = []
    find_scope = places.find_scope

    def counted(site: Site, *args: Any, **options: Any) -> Any:
        found.append(site.holder_name)
        return find_scope(site, *args, **options)

    monkeypatch.setattr(places, "find_scope", counted)
    return found


def test_a_block_that_overwrites_its_activation_among_others_that_print_alike(probes: list[str]) -> None:
    model = nn.Sequential(Block(), Block("in place"), Block())
    assert [site.plan for site in patch_model(model, ACTIVATIONS).sites] == ["output", None, "output"]
    assert probes == ["0", "1"]
    x = torch.randn(3, 8, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None


class Inner(nn.Module):
    """The activation's consumer is in the layer around it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(8, 32), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.up(x))
        return y


class Layer(nn.Module):
    def __init__(self, is_in_place: bool) -> None:
        super().__init__()
        self.inner, self.out, self.is_in_place = Inner(), nn.Linear(32, 8), is_in_place

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        y: Tensor = self.out(h.mul_(2.0) if self.is_in_place else h)
        return y


def test_equal_blocks_in_layers_that_print_alike() -> None:
    model = nn.ModuleList([Layer(False), Layer(True), Layer(False)])
    assert [site.plan for site in patch_model(model, ACTIVATIONS).sites] == ["output", None, "output"]


def test_equal_blocks_in_two_places_of_a_layer() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.out, self.other = Inner(), Inner(), nn.Linear(32, 8), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.out(self.first(x)) + self.other(self.second(x).mul_(2.0))
            return y

    assert [site.plan for site in patch_model(nn.ModuleList([Two()])).sites] == ["output", None]


def function() -> None: ...


class Colour(enum.Enum):
    RED = "red"


class Setting:
    pass


SHARED = Setting()


def made_anew(default: int = 1) -> Callable[[], int]:
    def made(x: int = default) -> int:
        return x

    return made


def closure(x: int) -> Callable[[], int]:
    return lambda: x


@pytest.mark.parametrize(
    ("one", "other", "is_alike"),
    [
        (1, 1, True),
        (1, 2, False),
        (1, True, False),
        ("relu", "gelu", False),
        ([1, {"a": (2.0,)}], [1, {"a": (2.0,)}], True),
        ([1, {"a": (2.0,)}], [1, {"a": (3.0,)}], False),
        ({1, 2}, {2, 1}, True),
        (torch.float32, torch.float16, False),
        (Colour.RED, Colour.RED, True),
        (function, function, True),
        (lambda: 1, lambda: 1, False),
        (made_anew(), made_anew(), True),
        (made_anew(1), made_anew(2), False),
        (closure(1), closure(1), False),
        (functools.partial(function, 1), functools.partial(function, 1), True),
        (functools.partial(function, 1), functools.partial(function, 2), False),
        (SHARED, SHARED, True),
        (Setting(), Setting(), False),
        (torch.tensor(True), torch.tensor(True), True),
        (torch.tensor(True), torch.tensor(False), False),
        (torch.zeros(100), torch.ones(100), True),
        (torch.zeros(100), torch.zeros(101), False),
    ],
)
def test_attributes(one: object, other: object, is_alike: bool) -> None:
    assert (signature(Block(one)) == signature(Block(other))) is is_alike


def test_a_collection_that_contains_itself() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    assert signature(Block(cycle)) == signature(Block(cycle))


def changed(change: Callable[[Block], object]) -> Block:
    block = Block()
    change(block)
    return block


@pytest.mark.parametrize(
    ("change", "is_alike"),
    [
        (lambda block: None, True),
        (lambda block: block.eval(), True),
        (lambda block: block.up.register_forward_hook(function), False),
        (lambda block: block.down.requires_grad_(False), False),
        (lambda block: block.down.half(), False),
        (lambda block: block.register_buffer("flag", torch.tensor(1)), False),
        (lambda block: setattr(block, "gradient_checkpointing", True), True),
        (lambda block: setattr(block.act, "approximate", "tanh"), False),
        (lambda block: setattr(block, "down", nn.Sequential(block.down)), False),
    ],
    ids=["nothing", "mode", "hook", "frozen", "dtype", "buffer", "checkpointed", "of a part", "structure"],
)
def test_hooks_buffers_and_parts(change: Callable[[Block], object], is_alike: bool) -> None:
    assert (signature(changed(change)) == signature(Block())) is is_alike


def test_the_same_hook_in_the_same_place_is_equal() -> None:
    one, other, elsewhere = Block(), Block(), Block()
    for block in (one, other):
        block.up.register_forward_hook(function)
    elsewhere.down.register_forward_hook(function)
    assert signature(one) == signature(other) != signature(elsewhere)
    for block in (one, other):
        nn.utils.weight_norm(block.up)
    assert signature(one) == signature(other)


MODELS = [
    *MODEL_NAMES,
    *(structure.name for structure in STRUCTURES if structure.name not in ("convnext", "whisper", "longformer")),
]
# The result of such a layer is used by the next one, so that each of these norms is measured in the whole model.
NORM_AT_THE_END = ("bert", "distilbert", "deberta-v2", "bart")


@pytest.mark.parametrize("name", MODELS)
def test_layers_of_transformers_share_a_probe(name: str, probes: list[str]) -> None:
    sites = ACTIVATIONS if name in NORM_AT_THE_END else None

    def count(layers: int) -> int:
        probes.clear()
        if name in MODEL_NAMES:
            patch_model(tiny_model(name, num_hidden_layers=layers), sites)
            return len(probes)
        (structure,) = (each for each in STRUCTURES if each.name == name)
        names = ("num_hidden_layers", "n_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
        given = {**structure.config, "num_hidden_layers": 1}
        config = {key: layers for key in names if key in given}
        patch_model(structure.model(**config), sites)
        return len(probes)

    assert count(3) == count(2) > 0
