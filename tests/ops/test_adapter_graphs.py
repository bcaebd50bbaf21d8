"""The input of an adapter under what PyTorch does to a graph: hooks, checkpoints, compilers, further derivatives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hf_invact.ops import adapter_input
from tests.helpers import LAYOUTS, contiguous_copies, normal
from tests.ops.adapters import RANK, Function, Run, assert_same_bits, each_arrangement, pefts

pytestmark = pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")


def transposed_copies() -> torch.autograd.graph.saved_tensors_hooks:
    """Saves copies whose dimensions lie in memory in the reverse order."""

    def pack(tensor: Tensor) -> Tensor:
        order = tuple(reversed(range(tensor.dim())))
        return tensor.permute(order).clone(memory_format=torch.contiguous_format).permute(order)

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


@pytest.mark.parametrize("hooks", [torch.autograd.graph.save_on_cpu, contiguous_copies, transposed_copies])
@each_arrangement
def test_hooks_on_saved_tensors(
    shape: tuple[int, ...], layout: str, hooks: Callable[[], AbstractContextManager[Any]]
) -> None:
    x = LAYOUTS[layout](shape, torch.bfloat16, 0)
    for frozen in ("", "x", "weight"):
        run = Run(torch.float32, 0.5, frozen=frozen)
        expected = run.of(adapter_input, x)
        with hooks():
            assert_same_bits(run.of(adapter_input, x), expected, run)


def test_the_input_and_the_bits_are_not_changed_by_backward() -> None:
    x, weight = normal(6, 24).requires_grad_(), normal(RANK, 24).requires_grad_()
    y = adapter_input(x, weight, torch.float32, 0.5)
    first = torch.autograd.grad(y.sum(), (x, weight), retain_graph=True)
    second = torch.autograd.grad(y.sum(), (x, weight))
    assert all(map(torch.equal, first, second))
    assert torch.equal(x, normal(6, 24))


def test_a_change_of_the_input_before_backward_is_an_error() -> None:
    hidden = normal(6, 24).requires_grad_() * 1
    y = adapter_input(hidden, normal(RANK, 24).requires_grad_(), torch.float32, 0.1)
    hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def two_adapters(function: Function) -> Callable[[Tensor, Tensor], Tensor]:
    """Of one tensor, with masks of their own, and exact operations before and after them."""

    def block(x: Tensor, weight: Tensor) -> Tensor:
        hidden = x * 2
        return function(hidden, weight, torch.float32, 0.5) * 0.5 + function(hidden, weight, torch.float32, 0.25)

    return block


def checkpointed(block: Callable[..., Tensor], use_reentrant: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        result: Tensor = checkpoint(block, x, weight, use_reentrant=use_reentrant)
        return result

    return call


def with_gradients(block: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor | None]:
    x, weight = normal(6, 24, dtype=torch.bfloat16).requires_grad_(), normal(RANK, 24, seed=1).requires_grad_()
    torch.manual_seed(2)
    y = block(x, weight)
    following = torch.rand(1)
    y.backward(normal(6, RANK, seed=3))
    return {"output": y.detach(), "dx": x.grad, "dweight": weight.grad, "random number": following}


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "not-reentrant"])
def test_a_checkpoint_draws_the_same_masks_again(use_reentrant: bool) -> None:
    found = with_gradients(checkpointed(two_adapters(adapter_input), use_reentrant))
    assert_same_bits(found, with_gradients(two_adapters(pefts)))


needs_a_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
COMPILERS = ["aot_eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_a_compiler])]


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_a_compiled_function_draws_the_same_masks(compiler: str, dynamic: bool, nothing_compiled: None) -> None:
    compiled = torch.compile(two_adapters(adapter_input), backend=compiler, fullgraph=True, dynamic=dynamic)
    assert_same_bits(with_gradients(compiled), with_gradients(two_adapters(pefts)))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_compiled_checkpoint_keeps_to_its_masks(compiler: str, nothing_compiled: None) -> None:
    compiled = torch.compile(checkpointed(two_adapters(adapter_input)), backend=compiler, fullgraph=True)
    assert_same_bits(with_gradients(compiled), with_gradients(two_adapters(pefts)))


# Derivatives of derivatives.


def seeded(function: Function, dtype: torch.dtype = torch.float64, p: float = 0.5) -> Callable[..., Tensor]:
    def of_tensors(x: Tensor, weight: Tensor) -> Tensor:
        torch.manual_seed(4)
        return function(x, weight, dtype, p)

    return of_tensors


@pytest.mark.parametrize(("of_x", "p"), [(torch.float64, 0.5), (torch.float32, 0.0)], ids=["dropout", "cast"])
def test_second_derivatives(of_x: torch.dtype, p: float) -> None:
    """As a penalty on the gradient needs them."""
    found = []
    for function in (adapter_input, pefts):
        x, weight = normal(3, 5, dtype=of_x), normal(RANK, 5, dtype=torch.float64, seed=1)
        leaves = x.requires_grad_(), weight.requires_grad_()
        y = seeded(function, p=p)(*leaves)
        gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        penalty = sum(gradient.double().pow(3).sum() for gradient in gradients)
        assert isinstance(penalty, Tensor)
        found.append((*gradients, *torch.autograd.grad(penalty, leaves)))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)


def test_gradients_by_differences() -> None:
    leaves = normal(3, 5, dtype=torch.float64).requires_grad_(), normal(RANK, 5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(seeded(adapter_input), leaves)
    assert torch.autograd.gradgradcheck(seeded(adapter_input), leaves)


def test_a_second_derivative_of_a_part_of_a_larger_tensor_is_refused() -> None:
    """The copy of the part that is kept is not in the graph."""
    x, weight = normal(3, 10).requires_grad_(), normal(RANK, 5).requires_grad_()
    y = adapter_input(x[:, :5], weight, torch.float32, 0.5)
    with pytest.raises(NotImplementedError, match=r"a part of a larger tensor has no second derivative.*unpatch_model"):
        torch.autograd.grad(y.square().sum(), (x, weight), create_graph=True)


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor], Tensor, Tensor], Any]] = {
    "grad": lambda f, x, weight: torch.func.grad(lambda *both: f(*both).square().sum(), (0, 1))(x, weight),
    "vjp": lambda f, x, weight: torch.func.vjp(f, x, weight)[1](torch.ones(6, RANK)),
    "vmap": lambda f, x, weight: torch.func.vmap(f, (0, None), randomness="different")(x, weight),
    "jacobian": lambda f, x, weight: torch.func.jacrev(f, argnums=(0, 1), chunk_size=None)(x, weight),
    "hessian": lambda f, x, weight: torch.func.hessian(lambda x: f(x, weight).square().sum())(x),
    "tangent": lambda f, x, weight: torch.func.jvp(f, (x, weight), (x, weight)),
}


@pytest.mark.parametrize(
    ("transform", "p"),
    [(name, p) for name in TRANSFORMS for p in (0.0, 0.5) if (name, p) != ("hessian", 0.5)],  # PyTorch refuses that
)
def test_transforms_as_by_pytorch(transform: str, p: float) -> None:
    def run(function: Function) -> Any:
        torch.manual_seed(5)
        cast = torch.float32 if p else torch.bfloat16
        x, weight = normal(6, 24, dtype=cast).requires_grad_(), normal(RANK, 24, seed=1).requires_grad_()
        return TRANSFORMS[transform](lambda *both: function(*both, torch.float32, p), x, weight)

    torch.testing.assert_close(run(adapter_input), run(pefts), rtol=0, atol=0)
