"""What gates save for backward, and what may change before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hf_invact.curves import CURVES, GELU, SILU, Curve, elu, softplus
from hf_invact.memory import SavedActivations
from hf_invact.ops import SAVINGS, Saving, gate
from hf_invact.ops.bits import packed_size
from tests.helpers import (
    each_gated,
    each_product_dtype,
    each_saving,
    inverted_gate,
    native_gate,
    normal,
    output_and_gradients,
    record_saved,
)
from tests.models import FusedGatedMLP


def storages(tensors: list[Tensor]) -> dict[int, int]:
    """Sizes of the distinct storages, by address."""
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@each_product_dtype
@pytest.mark.parametrize("curve", [GELU, elu(), softplus()], ids=lambda curve: curve.name)
def test_keeps_its_own_product_and_up_and_one_bit_per_element_where_the_curve_turns(
    curve: Curve, dtype: torch.dtype
) -> None:
    a, u = normal(65, dtype=dtype).requires_grad_(), normal(65, dtype=dtype, seed=1).requires_grad_()
    with record_saved() as saved:
        y = gate(a, u, curve)
    bits = [] if curve.x_min is None else [packed_size(65)]
    assert [t.untyped_storage().data_ptr() for t in saved[:2]] == [t.untyped_storage().data_ptr() for t in (y, u)]
    assert [t.untyped_storage().nbytes() for t in saved[2:]] == bits
    with record_saved() as saved:
        gate(a, u, curve, "inputs")
    assert storages(saved) == storages([a, u])


@pytest.mark.parametrize(
    ("curve", "of_gate", "of_up"),
    [
        (SILU, torch.float16, torch.float16),  # too few exponents
        (CURVES["relu6"], torch.bfloat16, torch.bfloat16),  # the slope jumps
        (SILU, torch.bfloat16, torch.float32),  # the product is wider than what was rounded
    ],
    ids=["float16", "jumps", "wider-up"],
)
def test_keeps_both_inputs_where_a_product_does_not_tell_the_output(
    curve: Curve, of_gate: torch.dtype, of_up: torch.dtype
) -> None:
    x = normal(65, 2, dtype=of_gate).requires_grad_()
    a, u = x.unbind(1)
    u = u.to(of_up)
    dy = normal(65, seed=2).to(torch.promote_types(of_gate, of_up))
    with record_saved() as saved:
        y, side = torch.ops.hf_invact.gate(a, u, curve.name, "eager")
    assert storages(saved) == storages([a, u])
    assert side.numel() == 0
    expected = native_gate(curve)(a, u)
    assert torch.equal(y, expected)
    assert torch.equal(*(torch.autograd.grad(product, x, dy)[0] for product in (y, expected)))
    if of_gate == of_up:
        with record_saved() as saved:
            gate(a, u, curve)
        assert storages(saved) == storages([a, u])


INPUT, WIDE = 4 * 16 * 4, 4 * 16 * 40  # bytes of 16 rows in float32: the MLP's input and a tensor inside it


@pytest.mark.parametrize(
    ("activation", "inside"),
    [
        (native_gate(GELU), 4 * WIDE),  # both halves, the activation's output, the product
        (inverted_gate(GELU), 2 * WIDE + 16 * 40 // 8),  # up and the product, without the other half
        (inverted_gate(GELU, "inputs"), 3 * WIDE),
    ],
    ids=["native", *SAVINGS],
)
def test_what_a_gated_mlp_keeps(activation: Callable[[Tensor, Tensor], Tensor], inside: int) -> None:
    model = FusedGatedMLP(activation)
    with SavedActivations(model) as saved:
        loss = model(normal(16, 4)).sum()
    assert saved.total_bytes == INPUT + inside
    assert loss.requires_grad


def test_a_projection_of_up_alone_is_kept_without_a_copy() -> None:
    for up in (normal(16, 40), normal(40, 16).T, normal(16, 1).expand(16, 40)):
        up = up.requires_grad_()
        with record_saved() as saved:
            y = gate(normal(16, 40), up, GELU)
        assert saved[1].data_ptr() == up.data_ptr()
        assert y.requires_grad


@each_saving
@each_gated
def test_inputs_that_are_not_kept_may_change_before_backward(curve: Curve, saving: Saving) -> None:
    def change(a: Tensor, u: Tensor) -> Tensor:
        hidden, up = torch.stack([a, u]).unbind()
        y = gate(hidden, up, curve, saving)
        if saving == "output":
            hidden.detach().fill_(torch.nan)
            up.detach().fill_(torch.nan)  # a view is saved as a copy
        else:
            y.detach().fill_(torch.nan)
        return y

    a, u = normal(100), normal(100, seed=1)
    _, *changed = output_and_gradients(change, a, u)
    assert all(map(torch.equal, changed, output_and_gradients(inverted_gate(curve, saving), a, u)[1:]))


@pytest.mark.parametrize(
    ("saving", "changed"), [("output", "product"), ("output", "up"), ("inputs", "gate"), ("inputs", "up")]
)
def test_a_change_of_what_is_kept_is_an_error(saving: Saving, changed: str) -> None:
    tensors = {"gate": normal(100).requires_grad_().clone(), "up": normal(100, seed=1).requires_grad_().clone()}
    tensors["product"] = gate(tensors["gate"], tensors["up"], GELU, saving)
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        tensors["product"].sum().backward()
