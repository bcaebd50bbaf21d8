"""Tensors of every kind: their data counts, and the backward pass is the same as without the meter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.memory.small import FLOAT, Function

ROWS, WIDTH = 6, 8
DENSE = ROWS * WIDTH * FLOAT
INDEX = 8
SPARSE_WARNINGS = pytest.mark.filterwarnings("ignore:.*(Sparse|nested tensors|quantiz)")


def identity_matrix(layout: torch.layout) -> Tensor:
    blocks = {"blocksize": (2, 2)} if layout in (torch.sparse_bsr, torch.sparse_bsc) else {}
    return torch.eye(ROWS).to_sparse(layout=layout, **blocks)


def as_nested(x: Tensor, layout: torch.layout) -> Tensor:
    return torch.nested.as_nested_tensor([x[:2], x[2:]], layout=layout)


class _Wrapper(Tensor):
    """Wraps a tensor, without PyTorch's protocol for that."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*(arg.inner if isinstance(arg, cls) else arg for arg in args), **(kwargs or {}))
        return cls(found) if isinstance(found, Tensor) else found


class _Flattens(_Wrapper):
    """Wraps a tensor with PyTorch's protocol. (It shows half of the data, so the count tells which is used.)"""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["half"], None

    @property
    def half(self) -> Tensor:
        return self.inner[:, ::2].contiguous()


class _FailsToFlatten(_Wrapper):
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        raise ValueError("not implemented yet")


class _Refuses(Tensor):
    """Supports a few functions, and raises for others."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(f"{function} is not implemented")


class _SavesOneThatRefuses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            ctx.save_for_backward(x.clone().as_subclass(_Refuses))
        return x.sum()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch._C.DisableTorchFunctionSubclass():
            return (x * dy).as_subclass(Tensor)


COO = ROWS * (2 * INDEX + FLOAT)
CASES: dict[str, tuple[Callable[[Tensor], Tensor], int | None]] = {
    "coo": (lambda x: torch.sparse.mm(identity_matrix(torch.sparse_coo), x).sum(), COO),
    "csr": (lambda x: torch.sparse.mm(identity_matrix(torch.sparse_csr), x).sum(), None),
    "csc": (lambda x: torch.sparse.mm(identity_matrix(torch.sparse_csc), x).sum(), None),
    "coo that is trained": (lambda x: torch.sparse.mm(x.to_sparse(), normal(WIDTH, 3)).sum(), None),
    "mkldnn": (lambda x: x.to_mkldnn().relu().to_dense().square().sum(), None),
    "jagged": (lambda x: as_nested(x, torch.jagged).sin().values().sum(), None),
    "nested": (lambda x: sum(part.sum() for part in as_nested(x, torch.strided).sin().unbind()), None),
    "fake quantized": (lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 0, -128, 127).sum(), DENSE // FLOAT),
    "in vmap": (lambda x: torch.vmap(lambda row: row.square())(x).sum(), DENSE),
    "in jvp": (lambda x: torch.func.jvp(torch.square, (x,), (x,))[1].sum(), None),
    "a subclass that refuses": (_SavesOneThatRefuses.apply, DENSE),
}


@SPARSE_WARNINGS
@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_saved_tensors_of_any_kind_train_as_without_the_meter(
    function: Callable[[Tensor], Tensor], expected: int | None
) -> None:
    gradients = []
    for is_metered in (False, True):
        x = normal(ROWS, WIDTH).requires_grad_()
        if is_metered:
            with SavedActivations(nn.Identity()) as saved:
                y = function(x)
        else:
            y = function(x)
        y.backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert saved.is_released
    if expected is not None:  # otherwise it depends on PyTorch's implementation
        assert saved.total_bytes == expected


@pytest.mark.parametrize(("wrapper", "expected"), [(_Wrapper, DENSE), (_Flattens, DENSE // 2), (_FailsToFlatten, 0)])
def test_tensors_that_wrap_others_count_what_they_tell(wrapper: type[_Wrapper], expected: int) -> None:
    x = wrapper(normal(ROWS, WIDTH)).requires_grad_()
    with SavedActivations(nn.Identity()) as saved:
        y = x.square()
    assert saved.total_bytes == expected
    y.backward(wrapper(torch.ones(ROWS, WIDTH)))
    assert torch.equal(x.grad.inner, 2 * normal(ROWS, WIDTH))


@SPARSE_WARNINGS
@pytest.mark.parametrize(
    "layout",
    [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc],
    ids=lambda layout: str(layout).removeprefix("torch.sparse_"),
)
def test_sparse_buffers_and_outputs_of_modules(layout: torch.layout) -> None:
    model = nn.Sequential(Function(lambda x: identity_matrix(layout)))
    model.register_buffer("adjacency", identity_matrix(layout))
    with SavedActivations(model) as saved:
        model(normal(1))
    held = [tensor.numel() * tensor.element_size() for tensor in _parts(identity_matrix(layout))]
    assert saved.output_bytes == {"0": sum(held)}


def _parts(tensor: Tensor) -> list[Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    names = ("crow_indices", "col_indices") if tensor.layout in _ROWS else ("ccol_indices", "row_indices")
    return [*(getattr(tensor, name)() for name in names), tensor.values()]


_ROWS = (torch.sparse_csr, torch.sparse_bsr)


def test_tensors_without_data_count_what_they_would_hold() -> None:
    x = torch.empty(ROWS, WIDTH, device="meta", requires_grad=True)
    with SavedActivations(nn.Identity()) as saved:
        x.sin().sum().backward()
    assert saved.total_bytes == DENSE


def test_a_lazy_layer_takes_its_shape_while_it_is_metered() -> None:
    model = nn.Sequential(nn.LazyLinear(WIDTH), nn.Tanh())
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH)).sum().backward()
    assert saved.by_module == {"0": DENSE, "1": DENSE}
