"""A plan is installed only if the block's result and gradients stay the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact import patch_model
from hf_invact.patching.probing.compare import difference
from hf_invact.patching.probing.probe import Measurement
from tests.helpers import dtype_name, normal
from tests.models import ACTIVATIONS, tiny_model
from tests.patching.structures import STRUCTURES


class ReusesMemory(torch.autograd.Function):
    """A linear layer whose backward pass writes into what it has saved, as some kernels do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx, dw = dy @ weight, dy.T @ x
        x.untyped_storage().copy_(dx.untyped_storage())  # which autograd does not notice
        return dx, dw


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.act(self.up(x)))
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
def test_a_consumer_that_reuses_the_memory_of_what_it_saved(dtype: torch.dtype) -> None:
    class Reuses(Block):
        def forward(self, x: Tensor) -> Tensor:
            return ReusesMemory.apply(self.act(self.up(x)).flatten(0, -2), self.down.weight)

    model = nn.Sequential(Reuses(), nn.Tanh()).to(dtype)
    (site,) = patch_model(model, ACTIVATIONS).sites
    assert site.plan is None
    assert "the gradient of " in site.reason
    assert "of its size, which rounding does not explain" in site.reason


def test_a_gradient_that_would_be_missing() -> None:
    class Detaches(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.act(self.up(x))
            name = type(y.grad_fn).__name__
            return self.down(y if name == "GeluBackward0" else y.detach()) + 0 * x

    (site,) = patch_model(nn.Sequential(Detaches(), nn.Tanh())).sites
    assert site.reason == "left alone: up.weight would get no gradient any more"


def named(*gradients: Tensor) -> dict[str, Tensor | None]:
    return {str(number): gradient for number, gradient in enumerate(gradients)}


def measurement(*gradients: Tensor) -> Measurement:
    return Measurement(1, torch.ones(2), named(*gradients))


def never(seed: int) -> dict[str, Tensor | None]:
    raise AssertionError("the unpatched block is run again, though nothing seems changed")


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=dtype_name)


@DTYPES
def test_wrong_slopes_are_seen_and_rounding_is_not(dtype: torch.dtype) -> None:
    plain, noise, eps = normal(100, 8), normal(100, 8, seed=1), torch.finfo(dtype).eps
    rounding = 3 * eps if dtype != torch.float64 else 1e-6
    assert difference(measurement(plain), measurement(plain + rounding * noise), dtype, never) is None

    def again(seed: int) -> dict[str, Tensor | None]:
        return named(*(each + 3 * eps * each.std() * normal(100, 8, seed=seed) for each in (plain, plain)))

    for wrong in (0.36, 0.15):
        why = difference(measurement(plain), measurement(plain + wrong * noise), dtype, again)
        assert why is not None
        assert why.startswith("the gradient of 0 would change by 0.")
    # One tensor among larger ones, and a part of its elements.
    some = plain.clone()
    some[:10] += noise[:10]
    assert difference(measurement(10 * plain, plain), measurement(10 * plain, some), dtype, again) is not None


@DTYPES
def test_a_gradient_of_rounding_errors_alone_is_ignored(dtype: torch.dtype) -> None:
    large, eps = normal(100, 8), torch.finfo(dtype).eps
    nothing = eps / 3 * normal(100, 8, seed=1)
    assert difference(measurement(large, nothing), measurement(large, -nothing), dtype, never) is None


@DTYPES
def test_of_larger_rounding_errors_the_block_itself_tells_what_they_are(dtype: torch.dtype) -> None:
    large, noise = normal(100, 8), 10 * torch.finfo(dtype).eps
    plain = measurement(large, noise * normal(100, 8, seed=1))

    def seen(factor: float, quiet: int = 0) -> str | None:
        """Whether so many times the noise are seen as a change, if some runs happen to round as the first one did."""

        def again(seed: int) -> dict[str, Tensor | None]:
            return named(large, noise * normal(100, 8, seed=1 if seed <= quiet else 10 + seed))

        return difference(plain, measurement(large, factor * noise * normal(100, 8, seed=2)), dtype, again)

    assert seen(1) is None
    assert seen(1, quiet=3) is None
    for why in (seen(10), seen(1, quiet=100)):
        assert why is not None
        assert why.startswith("the gradient of 1 would change by ")


def test_gradients_that_are_not_finite() -> None:
    finite, infinite = normal(4), normal(4) / 0

    def seen(plain: Tensor, patched: Tensor, again: Tensor = finite) -> bool:
        return difference(measurement(plain), measurement(patched), torch.float32, lambda _: named(again)) is not None

    assert not seen(infinite, finite)
    assert seen(finite, infinite)
    assert seen(finite, infinite, infinite)
    assert seen(finite, finite * torch.nan)


class Normed(Block):
    """The gradient of its first bias is nothing but rounding, and that of the activation a multiple, once patched."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.norm = slope, nn.BatchNorm1d(32, eps=1e-12)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.up(x / 1000).flatten(0, -2)))
        if type(y.grad_fn).__name__ != "GeluBackward0":
            y.register_hook(lambda dy: self.slope * dy)
        z: Tensor = self.down(y)
        return z


@DTYPES
def test_a_bias_before_a_batch_norm_hides_no_wrong_slope(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (site,) = patch_model(nn.Sequential(Normed(1.0), nn.Tanh()).to(dtype)).sites
    assert (site.plan, site.reason) == ("output", "")
    for slope in (0.64, 1.36):
        (site,) = patch_model(nn.Sequential(Normed(slope), nn.Tanh()).to(dtype)).sites
        assert site.plan is None
        assert site.reason.startswith("left alone: the gradient of ")
        assert "up.bias" not in site.reason


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_the_tolerance_is_that_of_the_activation_and_not_of_the_sum_behind_it(dtype: torch.dtype) -> None:
    """BLOOM adds a float32 residual to what autocast computes in half precision, with a formula that rounds often."""
    (structure,) = (structure for structure in STRUCTURES if structure.name == "t5")
    mixed = structure.model().to(dtype)
    for name, module in mixed.named_modules():
        if name.endswith("wo"):
            module.float()  # as Transformers loads it
    assert [site.plan for site in patch_model(mixed, ACTIVATIONS).sites] == ["gate-inputs"] * 2

    class Bloom(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    block = Bloom()
    block.act = tiny_model("gpt2").transformer.h[0].mlp.act  # gelu_new
    model = nn.Sequential(block, nn.Tanh())
    (site,) = patch_model(model, replace(ACTIVATIONS, autocast_dtype=dtype)).sites
    assert (site.plan, site.reason) == ("output", "")
    with torch.autocast("cpu", dtype):
        (site,) = patch_model(model, ACTIVATIONS).sites
    assert (site.plan, site.reason) == ("output", "")
