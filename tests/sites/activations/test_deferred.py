"""The value of a gate's activation: part of a product where it is multiplied, else a tensor like any other."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_invact.curves import SILU
from hf_invact.memory import SavedActivations
from hf_invact.sites.activations.deferred import DeferredActivation, DeferredOutput
from hf_invact.sites.kind import NotApplicable
from tests.helpers import normal

SHAPE = (4, 8)
Use = Callable[[Any, Tensor], Tensor]


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    gate, up = (normal(*SHAPE, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
    return gate, up


def pending(gate: Tensor, *, is_strict: bool = False) -> DeferredActivation:
    return DeferredActivation(DeferredOutput(gate, SILU, "output", "eager", F.silu, is_strict))


def in_place(act: Any, up: Tensor) -> Tensor:
    act *= up
    return act


def in_place_sum(act: Any, up: Tensor) -> Tensor:
    act += up
    return act


def with_item_set(act: Any, up: Tensor) -> Tensor:
    act[:, 1] = 0.5
    act[0] += up[0]
    return act * up


class Pair(NamedTuple):
    first: Any
    second: Any


class Negated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return -x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


PRODUCTS: dict[str, Use] = {
    "act * up": lambda act, up: act * up,
    "up * act": lambda act, up: up * act,
    "act *= up": in_place,
    "torch.mul(act, up)": torch.mul,
    "torch.mul(up, act)": lambda act, up: torch.mul(up, act),
    "torch.multiply": torch.multiply,
    "act.mul(up)": lambda act, up: act.mul(up),
    "up.mul(act)": lambda act, up: up.mul(act),
    "act.multiply(up)": lambda act, up: act.multiply(up),
    "operator.mul": operator.mul,
}
OTHERS: dict[str, Use] = {
    "act + up": lambda act, up: act + up,
    "up + act": lambda act, up: up + act,
    "act + 1": lambda act, up: act + 1,
    "1 - act": lambda act, up: 1 - act,
    "2 * act": lambda act, up: 2 * act,
    "act / 2": lambda act, up: act / 2,
    "-act": lambda act, up: -act,
    "act ** 2": lambda act, up: act**2,
    "act @ up.T": lambda act, up: act @ up.T,
    "up @ act.T": lambda act, up: up @ act.T,
    "act[:, :3]": lambda act, up: act[:, :3] * up[:, :3],
    "rows": lambda act, up: torch.stack([row * up[index] for index, row in enumerate(act)]),
    "reshape, then the product": lambda act, up: act.reshape(2, 16) * up.reshape(2, 16),
    "Linear": lambda act, up: F.linear(act, torch.ones(3, 8)),
    "dropout": lambda act, up: F.dropout(act, 0.0) * up,
    "act * act": lambda act, up: act * act,
    "cat": lambda act, up: torch.cat([act, up]),
    "einsum": lambda act, up: torch.einsum("ij,ij->i", act, up),
    "another shape": lambda act, up: act * up[:1],
    "another dtype": lambda act, up: act * up.double(),
    "out": lambda act, up: torch.mul(act, up, out=None) + 0,
    "keyword": lambda act, up: torch.where(condition=up > 0, input=act, other=up),
    "multiplied and added": lambda act, up: act * up + act,
    "added and multiplied": lambda act, up: (act + 1) * (act * up),
    "act % 0.3": lambda act, up: act % 0.3,
    "an item that is set": with_item_set,
    "act += up": in_place_sum,
    "act.clamp_": lambda act, up: act.clamp_(max=0.2) * up,
    "act > up": lambda act, up: torch.where(act > up, act, up),
    "an attribute": lambda act, up: act.T.mT * up,
    "an autograd function": lambda act, up: Negated.apply(act + 0) * up,
    "reversed": lambda act, up: torch.stack(list(reversed(act))) * up,
    "a pair of them": lambda act, up: torch.cat((act, act)) + torch.cat([up, up]),
    "an operator of PyTorch": lambda act, up: torch.ops.aten.mul(act, up) + torch.ops.aten.add.Tensor(act, up),
    "a named tuple": lambda act, up: torch.sum(torch.stack(Pair(act, up)), 0),
    "multiplied twice": lambda act, up: act * up + act * (up + 1),
}


def gradients(use: Use, act_of: Callable[[Tensor], Any]) -> tuple[Tensor, list[Tensor | None]]:
    gate, up = leaves()
    result = use(act_of(gate), up)
    return result.detach(), list(torch.autograd.grad(result.square().sum(), [gate, up], allow_unused=True))


@pytest.mark.parametrize("use", [*PRODUCTS.values(), *OTHERS.values()], ids=[*PRODUCTS, *OTHERS])
def test_values_and_gradients_are_those_of_the_activation(use: Use) -> None:
    result, got = gradients(use, pending)
    expected_result, expected = gradients(use, F.silu)
    assert torch.equal(result, expected_result)
    assert type(result) is Tensor
    for gradient, other in zip(got, expected, strict=True):
        assert (gradient is None) == (other is None)
        if gradient is not None:
            assert (gradient - other).norm() <= 1e-4 * other.norm()


@pytest.mark.parametrize("use", PRODUCTS.values(), ids=PRODUCTS)
def test_a_product_is_one_operation(use: Use) -> None:
    gate, up = leaves()
    product = use(pending(gate, is_strict=True), up)
    assert product.grad_fn is not None
    inputs = [type(function).__name__ for function, _ in product.grad_fn.next_functions if function is not None]
    assert "hf_invact_gate" in type(product.grad_fn).__name__
    assert inputs == ["AccumulateGrad"] * 2


@pytest.mark.parametrize("use", OTHERS.values(), ids=OTHERS)
def test_in_strict_mode_only_a_product_is_allowed(use: Use) -> None:
    gate, up = leaves()
    if use is OTHERS["multiplied twice"]:
        use(pending(gate, is_strict=True), up)
        return
    with pytest.raises(NotApplicable, match="not multiplied with a tensor of its shape and dtype"):
        use(pending(gate, is_strict=True), up)


def test_a_value_that_is_used_twice_is_computed_once() -> None:
    gate, up = leaves()
    act = pending(gate)
    with SavedActivations(nn.Identity(), ignore=[gate, up]) as saved:
        results = act + up, act.exp(), act * up
    assert len(results) == 3
    # The activation's output, and that of exp.
    assert saved.total_bytes == 2 * gate.numel() * 4


@contextmanager
def under_autocast() -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16):
        yield


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": under_autocast,
    "as called": nullcontext,
}
LOOKS: dict[str, Callable[[Any], Any]] = {
    "a number": lambda act: act.abs().mean().item(),
    "floored": lambda act: ((act // 0.3).tolist(), (1 // act).tolist(), (1 % act).tolist()),
    "a product": lambda act: (act * torch.ones(SHAPE)).sum().item(),
    "printed": lambda act: f"{act} {act!r} {act.detach():}",
    "counted": lambda act: (len(act), list(act.shape), act.dtype, act.numel(), sum(1 for _ in act)),
    "an array": lambda act: np.asarray(act.detach()).tolist(),
    "found": lambda act: (0.0 in act, act in [act], {act: 1}[act], bool((act < 9).all()), hash(act) == hash(act + 0)),
    "a scalar": lambda act: (float(act[0, 0]), int(act[0, 0]), operator.index((act > 0).sum())),
    "a copy": lambda act: copy.deepcopy(act.detach()).tolist(),
    "pickled": lambda act: pickle.loads(pickle.dumps(act.detach())).tolist(),
    "dlpack": lambda act: torch.from_dlpack(act.detach()).tolist(),
    "saved": lambda act: act.is_leaf or type(act.grad_fn).__name__,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_looking_at_the_value_changes_nothing(
    look: Callable[[Any], Any], mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    def use(act: Any, up: Tensor) -> Tensor:
        with mode():
            seen.append(look(act))
        return act * up

    seen: list[Any] = []
    result, got = gradients(use, pending)
    expected_result, expected = gradients(use, F.silu)
    assert seen[0] == seen[1]
    assert torch.equal(result, expected_result)
    for gradient, other in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_every_special_method_of_a_tensor_is_there() -> None:
    methods = {name for name in dir(Tensor) if name.startswith("__") and callable(getattr(Tensor, name))}
    methods -= {"__torch_dispatch__"}  # of subclasses of Tensor alone
    assert methods <= set(dir(DeferredActivation))
    own = {name for name in methods if getattr(DeferredActivation, name) is getattr(object, name, None)}
    assert own <= {"__init_subclass__", "__new__", "__subclasshook__", "__getattribute__", "__class__"}


def test_the_value_is_computed_under_the_autocast_that_the_activation_was_called_under() -> None:
    def native(x: Tensor) -> Tensor:
        return F.linear(F.silu(x), torch.eye(8))

    gate, up = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        act, expected = DeferredActivation(DeferredOutput(gate, SILU, "output", "eager", native)), native(gate)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(act * up, expected * up)
    act = DeferredActivation(DeferredOutput(gate, SILU, "output", "eager", native))
    with torch.autocast("cpu", torch.bfloat16):
        assert act.dtype == torch.float32


def test_an_autograd_function_that_would_drop_the_gradient_is_refused() -> None:
    gate, _ = leaves()
    with pytest.raises(RuntimeError, match=r"passed to a torch.autograd.Function, which would drop its gradient"):
        Negated.apply(pending(gate))
