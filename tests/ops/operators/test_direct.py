"""Operators are called directly only where nothing has to see them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hf_invact.ops import adapter_input


class Watch(TorchDispatchMode):
    """Leaves operators as they are."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class Labelled(Tensor):
    """A class of its own, which computes as a tensor does."""


CASES: list[tuple[str, Callable[[], AbstractContextManager[object]], type[Tensor], bool]] = [
    ("plain", nullcontext, Tensor, True),
    ("a mode", Watch, Tensor, False),
    ("fake tensors", FakeTensorMode, Tensor, False),
    ("a subclass", nullcontext, Labelled, False),
]


@pytest.mark.parametrize(("context", "cls", "is_direct"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_where_an_operator_is_called_directly(
    context: Callable[[], AbstractContextManager[object]], cls: type[Tensor], is_direct: bool
) -> None:
    with context():
        x, weight = torch.randn(3, 8).as_subclass(cls).requires_grad_(), torch.randn(2, 8, requires_grad=True)
        y = adapter_input(x, weight, torch.float32, 0.1, "eager")
        assert y.grad_fn is not None
        assert (y.grad_fn.name() == "adapter_inputBackward") == is_direct


@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_the_same_either_way(p: float, dtype: torch.dtype) -> None:
    def results(context: AbstractContextManager[object]) -> list[Tensor]:
        torch.manual_seed(0)
        x, weight = torch.randn(3, 5, 8).bfloat16().requires_grad_(), torch.randn(2, 8).to(dtype).requires_grad_()
        with context:
            y = adapter_input(x, weight, dtype, p, "eager")
            return [y, *torch.autograd.grad(y.square().sum(), (x, weight))]

    assert all(map(torch.equal, results(nullcontext()), results(Watch())))
