"""How a plan is chosen: by a probe that equal blocks share, else by default, or as the config demands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact import InvActConfig, PatchingError, PatchReport, patch_model, register_block, unpatch_model
from hf_invact.patching import SiteReport
from tests.helpers import normal
from tests.models import ACTIVATIONS, each_model, loss_and_gradients, tiny_model
from tests.patching.mlps import GATED, MLP, Training

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
ADAPTERS = ("up", "down")


REGISTERED = ("transformer.h", "bert.encoder", "model.layers")


def figures(site: SiteReport) -> tuple[str | None, int | None, int | None]:
    return site.plan, site.before, site.after


@each_model
def test_the_autocast_of_training_is_taken_into_account(name: str) -> None:
    """Adapters in float32 that are left alone keep the product, but under autocast a copy of it."""
    model = MLP(name, Training(torch.float32, adapters=ADAPTERS, are_adapters_float32=True)).model
    alone: dict[str, Any] = {"sites": ("activation",)}
    without = patch_model(model, replace(ACTIVATIONS, **alone)).sites[0]
    with torch.autocast("cpu", torch.bfloat16):
        active = patch_model(model, replace(ACTIVATIONS, **alone)).sites[0]
    of_config = patch_model(model, replace(ACTIVATIONS, **alone, autocast_dtype=torch.bfloat16)).sites[0]
    by_name = patch_model(model, InvActConfig.from_dict({**alone, "autocast_dtype": "bfloat16"})).sites[0]
    assert without.plan == ("gate-output" if name in GATED else "output")
    assert active.plan == ("gate-inputs" if name in GATED else None)
    assert active == of_config == by_name


def test_of_plans_that_keep_equally_much_the_exact_one_is_chosen() -> None:
    model = tiny_model("llama", activation="relu2")  # which needs no side bits
    for layer in model.model.layers:
        layer.mlp.down_proj.requires_grad_(False)
    exact = patch_model(model, ACTIVATIONS).sites[0]
    other = patch_model(model, replace(ACTIVATIONS, plan="gate-output")).sites[0]
    assert exact.after == other.after
    assert exact.plan == "gate-inputs"


CALLS: list[int] = []  # not an attribute of the block, which a probe would restore


class Counted(nn.Module):
    """Counts its forward passes."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(1)
        return self.down(self.act(self.up(x)))


def calls_of(*blocks: Counted) -> tuple[int, PatchReport]:
    CALLS.clear()
    report = patch_model(nn.ModuleList([nn.Sequential(block, nn.Tanh()) for block in blocks]))
    return len(CALLS), report


def frozen(block: Counted) -> Counted:
    block.down.requires_grad_(False)
    return block


@pytest.mark.parametrize(
    ("others", "probed"),
    [
        ([], []),
        ([Counted, Counted, Counted], []),
        ([Counted, lambda: Counted(16)], [1]),
        ([lambda: Counted().bfloat16(), Counted, lambda: Counted().bfloat16()], [0]),
        ([lambda: frozen(Counted())], [0]),
    ],
    ids=["one", "equal", "width", "dtype", "frozen"],
)
def test_equal_blocks_share_a_probe(others: list[Callable[[], Counted]], probed: list[int]) -> None:
    """Of the others, those that are not like the first one."""
    alone = [calls_of(make())[0] for make in (Counted, *(others[place] for place in probed))]
    assert min(alone) > 0
    count, report = calls_of(Counted(), *(make() for make in others))
    assert count == sum(alone)
    assert len(report.sites) == 1 + len(others)


def test_a_frozen_one_among_equal_blocks_has_its_own_plan() -> None:
    _, report = calls_of(Counted(), frozen(Counted()), Counted())
    assert [site.plan for site in report.sites] == ["output", None, "output"]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_model_with_gradient_checkpointing_is_measured_like_any_other(name: str) -> None:
    model = tiny_model(name)
    report = patch_model(model, ACTIVATIONS)
    unpatch_model(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert patch_model(model, ACTIVATIONS) == report
    assert model.is_gradient_checkpointing
    loss_and_gradients(model)


@pytest.mark.parametrize("plan", ["gate-inputs", "input", "gate-output", "output"])
def test_a_plan_that_the_config_demands(plan: str) -> None:
    model = tiny_model("llama")
    plain_loss, _ = loss_and_gradients(model)
    report = patch_model(model, replace(ACTIVATIONS, plan=plan))
    assert [site.plan for site in report.sites] == [plan, plan]
    assert [layer.mlp.act_fn.plan.name for layer in model.model.layers] == [plan, plan]
    loss, _ = loss_and_gradients(model)
    assert torch.equal(loss, plain_loss)


def test_a_plan_that_is_demanded_is_installed_even_if_it_keeps_more() -> None:
    mlp = MLP("bert", Training(frozen=("down",)))
    (site, *_) = patch_model(mlp.model, replace(ACTIVATIONS, plan="output")).sites
    assert (site.plan, site.reason) == ("output", "")
    assert site.before is not None
    assert site.after is not None
    assert site.after > site.before
    assert mlp.kept() == 1.0625


def test_a_gate_that_is_demanded_where_there_is_none() -> None:
    model = tiny_model("gpt2")
    patch_model(model, ACTIVATIONS)
    reason = r"\(the activation is not multiplied with a tensor of its shape and dtype\)"
    with pytest.raises(PatchingError, match=rf"plan='gate-output' is demanded: .* 0 of 2 sites patched.* {reason}"):
        patch_model(model, replace(ACTIVATIONS, plan="gate-output"))
    assert model.transformer.h[0].mlp.act.plan.name == "output", "as it was"


def test_a_gate_that_is_demanded_where_some_blocks_have_none() -> None:
    model = nn.ModuleList([tiny_model("gpt2"), tiny_model("llama")])
    report = patch_model(model, replace(ACTIVATIONS, plan="gate-output"))
    assert [site.plan for site in report.sites] == [None, None, "gate-output", "gate-output"]


class Odd(nn.Module):
    """Cannot be run on hidden states alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8)

    def forward(self, x: Tensor, sizes: dict[str, int]) -> Tensor:
        gate = self.act(self.up(x))
        return self.down(gate * gate.detach()[: sizes["rows"]])


class FailsLater(Odd):
    """Runs on a few tokens, but not on twice as many."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] < 6, "too many tokens"
        return self.down(self.act(self.up(x)))


class Overwrites(Odd):
    """Autograd refuses the gradient if the activation keeps its output."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)).mul_(2.0))


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (Odd, "not measured (Odd cannot be run by itself: TypeError: 'NoneType' object is not subscriptable)"),
        (FailsLater, "not measured (FailsLater cannot be run by itself: AssertionError: too many tokens)"),
        (Overwrites, "once patched, Overwrites cannot be run by itself: RuntimeError: one of the variables needed"),
    ],
)
def test_a_block_that_cannot_be_probed_is_left_alone_for_a_reason(cls: type[Odd], why: str) -> None:
    model = nn.Sequential(cls(), nn.Tanh())
    (site,) = patch_model(model, ACTIVATIONS).sites
    assert site.reason.startswith(f"left alone: {why}")
    assert site.plan is None
    assert type(model[0].act) is nn.SiLU


@pytest.mark.parametrize(("is_gated", "plan"), [(False, "output"), (True, "gate-output")], ids=["plain", "gated"])
def test_a_registered_block_that_cannot_be_probed_is_patched_by_rule(is_gated: bool, plan: str) -> None:
    register_block(Odd, "act", is_gated=is_gated)
    model = nn.Sequential(Odd(), nn.Tanh())
    (site,) = patch_model(model, ACTIVATIONS).sites
    assert (site.plan, site.before, site.after) == (plan, None, None)
    assert site.reason.startswith("by default, not measured: Odd cannot be run by itself: TypeError")
    x = normal(2, 8).requires_grad_()
    model[0](x, {"rows": 2}).sum().backward()
    assert x.grad is not None


def test_a_plan_that_is_demanded_of_what_cannot_be_probed() -> None:
    (site,) = patch_model(nn.Sequential(Odd(), nn.Tanh()), replace(ACTIVATIONS, plan="input")).sites
    assert site.plan == "input"
    assert site.reason.startswith("as the config says, not measured: Odd cannot be run by itself")


def test_two_activations_in_one_block_do_not_disturb_each_other() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 8))
    report = patch_model(model, ACTIVATIONS)
    assert [site.plan for site in report.sites] == ["output", "output"]
    assert patch_model(model, ACTIVATIONS) == report
    assert report.saved_bytes_per_token == 2 * (1 - 1 / 32) * 32 * 4


@each_model
def test_weights_whose_results_cannot_be_compared_are_measured_too(name: str) -> None:
    """As the ranks hold that do not load the real weights themselves."""
    real = patch_model(tiny_model(name), ACTIVATIONS)
    model = tiny_model(name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(torch.nan)
    assert patch_model(model, ACTIVATIONS) == real
