"""A kind of sites that is not part of the package: found, measured, installed, reported and restored like its own."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact import InvActConfig, PatchingError, patch_model, sites, unpatch_model
from hf_invact.environment import describe_installation, render_installation
from hf_invact.sites import Known, Plan, Site
from tests.helpers import normal


class Cube(nn.Module):
    """Keeps a copy of its input, and the copy's square."""

    def forward(self, x: Tensor) -> Tensor:
        copy = x.clone()
        return copy * copy * copy


class _CubeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return dy * 3 * x * x


class PatchedCube(Cube):
    """Keeps its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _CubeFunction.apply(x)
        return y


@dataclass(frozen=True, eq=False)
class CubeSite(Site):
    @property
    def module(self) -> nn.Module:
        return self.holder

    @property
    def key(self) -> Hashable:
        return "cube"


CUBE_INPUT = Plan("cube-input", "the input", exact=True)


class Cubes(sites.SiteKind[CubeSite, Plan]):
    name = "cube"
    plans = (CUBE_INPUT,)

    def find(self, model: nn.Module) -> Iterator[CubeSite]:
        for name, module in model.named_modules():
            if isinstance(module, Cube):
                yield CubeSite(self, name, name, module, block="Cube", original="Cube", computes="cube")

    def patched(self, model: nn.Module) -> Iterator[CubeSite]:
        return (site for site in self.find(model) if self.installed(site))

    def nothing_found(self, model: nn.Module) -> str:
        return "It has no Cube."

    def conflicts(self, module: nn.Module) -> Iterator[str]:
        return iter(())

    def obstacle(self, site: CubeSite) -> str | None:
        return "it is flat" if hasattr(site.holder, "is_flat") else None

    def fallback(self, site: CubeSite) -> Plan | None:
        return CUBE_INPUT

    def install(self, site: CubeSite, plan: Plan, backend: str, *, strict: bool = False) -> None:
        site.holder.__class__ = PatchedCube

    def restore(self, site: CubeSite) -> None:
        site.holder.__class__ = Cube

    def installed(self, site: CubeSite) -> Plan | None:
        return CUBE_INPUT if isinstance(site.holder, PatchedCube) else None

    @contextmanager
    def suspended(self, site: CubeSite) -> Iterator[None]:
        before, site.holder.__class__ = type(site.holder), Cube
        try:
            yield
        finally:
            site.holder.__class__ = before

    @contextmanager
    def observed(self, site: CubeSite, note: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
        class Observed(Cube):
            def forward(self, x: Tensor) -> Tensor:
                y = super().forward(x)
                note(x, y)
                return y

        with self.suspended(site):
            site.holder.__class__ = Observed
            yield

    def notes(self, site: CubeSite) -> dict[str, Any] | None:
        return None

    def known(self) -> tuple[Known, ...]:
        return (Known("cubes", "modules that return the cube of their input", ["Cube"]),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.cube, self.down = nn.Linear(8, 32), nn.GELU(), Cube(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.cube(self.act(self.up(x))))
        return y


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(Block(), Block())


@pytest.fixture(autouse=True)
def cubes_first(monkeypatch: pytest.MonkeyPatch) -> Cubes:
    cubes = Cubes()
    monkeypatch.setattr(sites, "KINDS", (cubes, *sites.KINDS))
    return cubes


def gradients(model: nn.Module) -> list[Tensor]:
    model(normal(4, 8)).square().sum().backward()
    found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    return found


def test_it_is_planned_installed_reported_and_restored(model: nn.Module) -> None:
    plain = gradients(model)
    report = patch_model(model)
    assert [(row.name, row.kind, row.plan) for row in report.sites] == [
        ("0.cube", "cube", "cube-input"),
        ("1.cube", "cube", "cube-input"),
        ("0.act", "activation", "output"),
        ("1.act", "activation", "output"),
    ]
    # Of 32 numbers each: the activation's input, the copy and its square; then the input of the patched cube.
    assert [(row.before, row.after) for row in report.sites[:1]] == [(4 * 32 * 4, 3 * 32 * 4)]
    assert "0-1.cube (2)" in str(report)
    assert "cube-input: keeps the input; exact gradients" in str(report)
    for before, after in zip(plain, gradients(model), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
    assert [site.name for site in sites.patched_sites(model)] == ["0.cube", "1.cube", "0.act", "1.act"]
    unpatch_model(model)
    assert [type(block.cube) for block in model.children()] == [Cube, Cube]
    assert list(sites.patched_sites(model)) == []


def test_what_is_decided_first_stays_installed_for_what_follows(model: nn.Module) -> None:
    """Only a patched cube keeps the activation's output, which therefore costs nothing to keep."""
    report = patch_model(model, InvActConfig(sites=("activation",)))
    assert [row.plan for row in report.sites] == [None, None]
    report = patch_model(model)
    assert [row.plan for row in report.sites] == ["cube-input", "cube-input", "output", "output"]
    activation = report.sites[2]
    assert activation.before == 3 * 32 * 4
    assert activation.after == 2 * 32 * 4 + 32 // 8


def test_blocks_around_what_is_installed_differ_if_that_differs(model: nn.Module) -> None:
    report = patch_model(model, InvActConfig(exclude=("0.cube",)))
    assert [row.plan for row in report.sites] == [None, "cube-input", None, "output"]


def test_a_plan_is_demanded_of_its_kind_alone(model: nn.Module) -> None:
    report = patch_model(model, InvActConfig(plan="input"))
    assert [row.plan for row in report.sites] == ["cube-input", "cube-input", "input", "input"]
    report = patch_model(model, InvActConfig(plan=("cube-input", "output")))
    assert [row.plan for row in report.sites] == ["cube-input", "cube-input", "output", "output"]


def test_kinds_that_a_later_config_does_not_name_are_restored(model: nn.Module) -> None:
    expected = patch_model(model, InvActConfig(sites=("cube",)))
    patch_model(model)
    assert patch_model(model, InvActConfig(sites=("cube",))) == expected
    assert [site.name for site in sites.patched_sites(model)] == ["0.cube", "1.cube"]
    assert type(model[0].act) is nn.GELU


def test_one_that_is_left_alone_says_why(model: nn.Module) -> None:
    model[0].cube.is_flat = True
    report = patch_model(model, InvActConfig(sites=("cube",)))
    assert [(row.plan, row.reason) for row in report.sites] == [(None, "left alone: it is flat"), ("cube-input", "")]


def test_a_model_without_any_says_so() -> None:
    with pytest.raises(PatchingError, match=r"no cube to invert in Linear\. It has no Cube\."):
        patch_model(nn.Linear(2, 2), InvActConfig(sites=("cube",)))


def test_the_installations_description_lists_it() -> None:
    facts = describe_installation()
    assert facts["cubes"] == ["Cube"]
    assert "modules that return the cube of their input:\n    Cube" in render_installation(facts)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kinds of sites, of cube, adapter, activation, norm, got"):
        InvActConfig(sites=("sphere",))
