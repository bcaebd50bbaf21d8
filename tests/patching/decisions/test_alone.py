"""What is decided for norms, by what the modules around them keep anyway."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from hf_invact import patch_model
from hf_invact.memory import SavedActivations
from hf_invact.sites.norms import Norms
from tests.helpers import normal
from tests.sites.norms.small import NORMS

WIDTH = 64
OUTPUT, INPUT = "norm-output", "norm-input"


class Parallel(nn.Module):
    """Two norms of one tensor. What follows on each keeps its result, or does not."""

    def __init__(self, make: Callable[[int], nn.Module], first_is_kept: bool, second_is_kept: bool) -> None:
        super().__init__()
        self.before, self.first, self.second = nn.Linear(WIDTH, WIDTH), make(WIDTH), make(WIDTH)
        self.after_first = nn.Linear(WIDTH, WIDTH) if first_is_kept else nn.Identity()
        self.after_second = nn.Linear(WIDTH, WIDTH) if second_is_kept else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y: Tensor = self.after_first(self.first(x)) + self.after_second(self.second(x))
        return y


def kept(model: nn.Module) -> int:
    """Bytes per row. (The indices of the channels that are kept apart do not count.)"""
    total = []
    for rows in (4, 8):
        with SavedActivations(model) as saved:
            model(normal(rows, WIDTH))
        total.append(saved.total_bytes)
    return (total[1] - total[0]) // 4


@pytest.mark.parametrize(
    ("make", "is_kept", "plans"),
    [
        (nn.LayerNorm, (True, True), (OUTPUT, OUTPUT)),
        (nn.LayerNorm, (True, False), (None, None)),  # the second keeps the input in any case
        (nn.LayerNorm, (False, False), (None, None)),
        (LlamaRMSNorm, (True, True), (OUTPUT, OUTPUT)),
        (LlamaRMSNorm, (True, False), (INPUT, INPUT)),
        (LlamaRMSNorm, (False, False), (INPUT, INPUT)),
    ],
)
def test_norms_of_one_tensor(
    make: Callable[[int], nn.Module], is_kept: tuple[bool, bool], plans: tuple[str | None, str | None]
) -> None:
    model = nn.Sequential(Parallel(make, *is_kept), nn.Linear(WIDTH, WIDTH))
    plain = kept(model)
    report = patch_model(model, NORMS)
    assert tuple(site.plan for site in report.sites) == plans
    assert plain - kept(model) == report.saved_bytes_per_token
    for first in (None, INPUT, OUTPUT):  # no other plans would keep less
        for second in (None, INPUT, OUTPUT):
            _demand(model, first, second)
            assert kept(model) >= plain - report.saved_bytes_per_token


def _demand(model: nn.Module, first: str | None, second: str | None) -> None:
    """One plan for each norm, whatever was decided."""
    kind = Norms()
    for site, name in zip(list(kind.find(model)), (first, second), strict=True):
        if name is None:
            kind.restore(site)
        else:
            kind.install(site, next(plan for plan in kind.plans if plan.name == name), "eager")


def test_a_norm_that_is_the_whole_block_is_measured_in_the_model_around_it() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8)), nn.Linear(8, 8))
    assert [site.plan for site in patch_model(model, NORMS).sites] == [OUTPUT]


def test_frozen_consumers_keep_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    model[2].weight.requires_grad_(False)
    (site,) = patch_model(model, NORMS).sites
    assert (site.plan, site.reason) == (None, "left alone: nothing would keep less")


class OfAWeight(nn.Module):
    """Normalises a table of relative positions, as DeBERTa does."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.table, self.norm = nn.Linear(WIDTH, WIDTH), nn.Embedding(8, WIDTH), LlamaRMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.before(x) @ self.norm(self.table.weight).T
        return y


def test_a_norm_of_a_weight_is_left_alone_and_others_are_not() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), OfAWeight(), nn.Linear(8, WIDTH), LlamaRMSNorm(WIDTH))
    model.append(nn.Linear(WIDTH, WIDTH))
    report = patch_model(model, NORMS)
    found = {site.name: (site.plan, site.reason) for site in report.sites}
    assert found == {"1.norm": (None, "left alone: nothing would keep less"), "3": (OUTPUT, "")}
