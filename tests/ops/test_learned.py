"""What the activations with learned parameters have in common: what they save, and how they fit into a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import XIELUActivation

from hf_invact.ops import buffers
from hf_invact.ops.bits import packed_size
from tests.helpers import (
    FOUR_DIMENSIONS,
    LAYOUTS,
    SMALL_PIECE,
    each_layout,
    normal,
    record_saved,
)
from tests.learned import ALPHAS, MODULES, Pass, each_module, exact_passes, inverted, passes, prelu, xielu


def same(some: Pass, other: Pass) -> bool:
    return all(map(torch.equal, [*some[:2], *some.parameters], [*other[:2], *other.parameters]))


@each_module
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=["inf", "-inf", "nan"])
def test_a_gradient_that_is_not_a_number_stays_so(make: Callable[[torch.dtype], nn.Module], value: float) -> None:
    module = make(torch.float32)
    x = normal(3, 8)
    x[1, 2] = value
    native, got = (passes(module, function, x, torch.ones_like(x)) for function in (module, inverted(module)))
    for found, expected in zip((got.dx, *got.parameters), (native.dx, *native.parameters), strict=True):
        assert found[expected.isnan()].isnan().all()
        assert found[expected.isfinite()].isfinite().all()


AUTOCAST: dict[str, Callable[[torch.dtype], nn.Module]] = {
    "prelu": lambda dtype: prelu(0.3, dtype=dtype),  # not a number of bfloat16
    "xielu": MODULES["xielu"],
}


@pytest.mark.parametrize("make", AUTOCAST.values(), ids=AUTOCAST)
def test_autocast(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float32)
    x = normal(4000, dtype=torch.bfloat16 if isinstance(module, XIELUActivation) else torch.float32)
    dy = 1 + normal(4000, dtype=torch.bfloat16, seed=1) / 4
    with torch.autocast("cpu", torch.bfloat16):
        native, got = (passes(module, function, x, dy) for function in (module, inverted(module)))
    assert torch.equal(got.y, native.y)
    assert got.dx.dtype is x.dtype
    assert isinstance(module, XIELUActivation) or torch.equal(got.dx, native.dx)
    assert [gradient.dtype for gradient in got.parameters] == [torch.float32] * len(got.parameters)
    exact = exact_passes(module, x, dy)
    assert (got.dx.double() - exact.dx).square().mean().sqrt() < 0.01
    for found, expected in zip(got.parameters, exact.parameters, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0)


@each_module
def test_autocast_remembers_no_cast_without_a_gradient(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float32)
    x = normal(16, 8).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inverted(module)(x)
        y = module(x)
    gradients = torch.autograd.grad(y.float().sum(), list(module.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


@each_module
def test_gradcheck(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float64)
    x = normal(5, 8, dtype=torch.float64).requires_grad_()
    function = inverted(module)
    parameters = list(module.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: function(x), (x, *parameters), atol=1e-6, rtol=1e-6)


@each_module
def test_keeps_the_output_and_at_most_one_bit_per_element(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.bfloat16)
    x = normal(64, 8, 5, dtype=torch.bfloat16).requires_grad_()
    with record_saved() as saved:
        y = inverted(module)(x)
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in saved}
    assert sizes.pop(y.untyped_storage().data_ptr()) == x.numel() * 2
    bits = packed_size(x.numel()) if isinstance(module, XIELUActivation) else 0
    assert sum(size for size in sizes.values() if size > 16) == bits


@each_layout
@each_module
def test_pieces_do_not_change_the_gradient(
    make: Callable[[torch.dtype], nn.Module], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(torch.float32)
    x, dy = LAYOUTS[layout](FOUR_DIMENSIONS, torch.float32, 0), normal(*FOUR_DIMENSIONS, seed=1)
    whole = passes(module, inverted(module), x, dy)
    monkeypatch.setattr(buffers, "CPU_PIECE", SMALL_PIECE)
    in_pieces = passes(module, inverted(module), x, dy)
    # PyTorch has two versions of a function, and the start of a piece decides which one it calls.
    torch.testing.assert_close(in_pieces.dx, whole.dx, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(in_pieces.parameters, whole.parameters, rtol=1e-5, atol=1e-5)


@each_module
def test_gradients_of_the_input_or_of_the_parameters_alone(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float32)
    x = normal(16, 8)
    both = passes(module, inverted(module), x, torch.ones_like(x))
    gradients = torch.autograd.grad(inverted(module)(x).sum(), list(module.parameters()))
    assert all(map(torch.equal, gradients, both.parameters))
    module.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    inverted(module)(leaf).sum().backward()
    assert torch.equal(leaf.grad, both.dx)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_one_of_two_parameters_is_frozen() -> None:
    module = xielu(ALPHAS[0])
    x = normal(100)
    both = passes(module, inverted(module), x, torch.ones_like(x))
    module.alpha_p.requires_grad_(False)
    inverted(module)(x).sum().backward()
    assert module.alpha_p.grad is None
    assert torch.equal(module.alpha_n.grad, both.parameters[1])


@each_module
def test_backward_twice_gives_the_same(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float32)
    x = normal(16, 8).requires_grad_()
    y = inverted(module)(x)
    wanted = [x, *module.parameters()]
    first = torch.autograd.grad(y.sum(), wanted, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(y.sum(), wanted), first))


@each_module
def test_a_second_derivative_is_refused(make: Callable[[torch.dtype], nn.Module]) -> None:
    x = normal(16, 8).requires_grad_()
    (dx,) = torch.autograd.grad(inverted(make(torch.float32))(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dx.sum().backward()


@each_module
@pytest.mark.parametrize("which", ["output", "parameter"])
def test_a_change_before_backward_is_an_error(make: Callable[[torch.dtype], nn.Module], which: str) -> None:
    module = make(torch.float32)
    y = inverted(module)(normal(16, 8).requires_grad_())
    with torch.no_grad():
        (y if which == "output" else next(module.parameters())).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def contiguous_copies() -> torch.autograd.graph.saved_tensors_hooks:
    return torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.clone(memory_format=torch.contiguous_format), lambda tensor: tensor
    )


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, contiguous_copies])
@each_layout
@each_module
def test_hooks_on_saved_tensors(make: Callable[[torch.dtype], nn.Module], layout: str, hooks: Any) -> None:
    module = make(torch.float32)
    x, dy = LAYOUTS[layout](FOUR_DIMENSIONS, torch.float32, 0), normal(*FOUR_DIMENSIONS, seed=1)
    plain = passes(module, inverted(module), x, dy)
    with hooks():
        assert same(passes(module, inverted(module), x, dy), plain)


@each_module
def test_checkpoint(make: Callable[[torch.dtype], nn.Module]) -> None:
    module = make(torch.float32)
    x, dy = normal(*FOUR_DIMENSIONS), normal(*FOUR_DIMENSIONS, seed=1)
    recomputed = passes(module, lambda x: checkpoint(inverted(module), x, use_reentrant=False), x, dy)
    assert same(recomputed, passes(module, inverted(module), x, dy))
