"""Exact byte counts of what autograd saves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from hf_invact.memory import SavedActivations
from tests.helpers import normal
from tests.memory.small import FLOAT, INNER, NARROW, ROWS, WIDE, WIDTH, Function, mlp
from tests.models import each_model, loss_and_gradients, tiny_model


def measure(function: Callable[[Tensor], Tensor], x: Tensor) -> SavedActivations:
    with SavedActivations(Function(function)) as saved:
        result = function(x)
    assert result.requires_grad
    return saved


def test_counts_the_inputs_that_are_kept() -> None:
    model = mlp()
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH))
    assert saved.total_bytes == NARROW + 2 * WIDE
    assert saved.by_module == {"0": NARROW, "1": WIDE, "2": WIDE}
    assert [record.bytes for record in saved.records] == [NARROW, WIDE, WIDE]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1.0, 0),
        (lambda x: x.exp(), WIDE),  # its output
        (lambda x: x.square(), WIDE),  # its input
        (lambda x: x.sin() * x.cos(), 3 * WIDE),  # the input is saved twice, and is one storage
        (lambda x: x.T.square().sum() + x[:1].square().sum(), WIDE),  # views of one storage
        (lambda x: (x + 1.0)[:, :1].square(), WIDE),  # a view keeps the whole of its base alive
        (lambda x: (x + 1.0)[:, :1].clone().square(), ROWS * FLOAT),
        (lambda x: x.expand(3, -1, -1).square(), WIDE),
        (lambda x: x.bfloat16().square(), WIDE // 2),
    ],
    ids=["none", "output", "input", "shared", "views", "view", "copied view", "expanded", "bfloat16"],
)
def test_counts_whole_storages_once(function: Callable[[Tensor], Tensor], expected: int) -> None:
    assert measure(function, normal(ROWS, INNER).requires_grad_()).total_bytes == expected


def test_parameters_and_buffers_are_not_counted() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(INNER))
            self.register_buffer("constant", normal(INNER))
            self.register_buffer("passing", normal(INNER), persistent=False)
            self.loose = normal(INNER)

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight[:] * self.constant * self.passing * self.loose

    model = Scale()
    with SavedActivations(model) as saved:
        model(normal(ROWS, INNER).requires_grad_())
    # The input, and the tensor that only an attribute references.
    assert [record.bytes for record in saved.records] == [WIDE, INNER * FLOAT]


class _ReplacesItsBuffer(nn.Module):
    """As quantized layers do; its next tensor may reuse the memory of the old buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.scale = self.scale * 2
        return x.square()


def test_what_takes_the_place_of_a_replaced_buffer_counts() -> None:
    model = nn.Sequential(*(_ReplacesItsBuffer() for _ in range(20)))
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH).requires_grad_())
    assert saved.total_bytes == 20 * NARROW


def test_nothing_is_kept_without_gradients() -> None:
    model = mlp()
    with SavedActivations(model) as saved, torch.no_grad():
        model(normal(ROWS, WIDTH))
    assert (saved.total_bytes, saved.by_module, saved.records) == (0, {}, ())


def test_forward_passes_add_up_while_they_are_alive() -> None:
    model, x = mlp(), normal(ROWS, WIDTH)
    with SavedActivations(model) as saved:
        outputs = [model(x) for _ in range(3)]
    assert len(outputs) == 3
    assert saved.total_bytes == NARROW + 3 * 2 * WIDE  # the input is the same one


def test_reports_the_moment_at_which_most_was_kept() -> None:
    model = mlp()
    with SavedActivations(model) as saved:
        for rows in (ROWS, 3 * ROWS, 2 * ROWS):
            model(normal(rows, WIDTH)).sum().backward()
    assert saved.total_bytes == 3 * (NARROW + 2 * WIDE)
    assert saved.by_module == {"0": 3 * NARROW, "1": 3 * WIDE, "2": 3 * WIDE}


def test_a_storage_is_released_with_the_last_that_keeps_it() -> None:
    x = normal(ROWS, INNER).requires_grad_()
    with SavedActivations(nn.Identity()) as saved:
        shared = x + 1.0
        first, second = shared.square(), shared.square()
        del first
        third = normal(ROWS, INNER).requires_grad_().square()
    assert second.requires_grad
    assert third.requires_grad
    assert saved.total_bytes == 2 * WIDE


def test_entered_again_it_adds_what_is_kept_besides() -> None:
    model, x = mlp(), normal(ROWS, WIDTH)
    saved = SavedActivations(model)
    with saved:
        first = model(x).sum()
    normal(3).requires_grad_().square()
    with saved:
        second = model(normal(ROWS, WIDTH, seed=1)).sum()
    assert saved.total_bytes == 2 * (NARROW + 2 * WIDE)
    assert saved.by_module == {"0": 2 * NARROW, "1": 2 * WIDE, "2": 2 * WIDE}
    first.backward()
    assert not saved.is_released
    second.backward()
    assert saved.is_released
    assert saved.total_bytes == 2 * (NARROW + 2 * WIDE)


def test_cannot_be_entered_while_it_is_active() -> None:
    saved = SavedActivations(mlp())
    with saved, pytest.raises(RuntimeError, match="active already"), saved:
        pass
    with saved:
        pass


def test_figures_stay_after_the_context() -> None:
    model = mlp()
    with SavedActivations(model) as saved:
        loss = model(normal(ROWS, WIDTH)).sum()
        assert saved.total_bytes == NARROW + 2 * WIDE
    loss.backward()
    model(normal(ROWS, WIDTH))
    assert saved.total_bytes == NARROW + 2 * WIDE


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_a_checkpointed_block_keeps_its_input_only(use_reentrant: bool) -> None:
    inner = mlp()
    model = Function(lambda x: checkpoint(inner, x, use_reentrant=use_reentrant))
    model.inner = inner
    x = normal(ROWS, WIDTH).requires_grad_()
    with SavedActivations(model) as saved:
        loss = model(x).sum()
    assert (saved.total_bytes, saved.by_module) == (NARROW, {"": NARROW})
    loss.backward()
    assert x.grad is not None


def test_a_recomputed_block_counts_at_its_peak() -> None:
    inner = mlp()
    model = nn.Sequential(Function(lambda x: checkpoint(inner, x, use_reentrant=True)), nn.Tanh())
    model[0].inner = inner
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH).requires_grad_()).sum().backward()
    # The output of tanh is released when the block is recomputed.
    assert saved.by_module == {"0": NARROW, "0.inner.1": WIDE, "0.inner.2": WIDE}


class Nested(nn.Module):
    """Saves something itself, in a child, and in a grandchild."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, INNER), nn.Sequential(nn.Tanh(), nn.Identity()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).square().mean()


def test_attributes_to_the_innermost_module_that_runs() -> None:
    model = nn.ModuleDict({"first": Nested()})
    with SavedActivations(model) as saved:
        model["first"](normal(ROWS, WIDTH)) + normal(3).requires_grad_().square().sum()
    assert saved.by_module == {"first.body.0": NARROW, "first.body.1.0": WIDE, "": 3 * FLOAT}
    model = Nested()
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH).requires_grad_())
    assert saved.by_module == {"body.0": NARROW, "body.1.0": WIDE}


def test_names_the_innermost_module_that_made_a_tensor() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(WIDTH, INNER), nn.Identity()), nn.GELU(), nn.Flatten(0))
    with SavedActivations(model) as saved:
        model(normal(ROWS, WIDTH)).square()
    assert [(record.saved_by, record.output_of) for record in saved.records] == [
        ("0.0", None),
        ("1", "0.0"),
        ("", "1"),  # through a view that another module returned
    ]


def test_output_bytes_of_every_module_that_returns_a_tensor() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    model = nn.ModuleList([nn.Linear(WIDTH, INNER), Two()])
    with SavedActivations(model) as saved:
        model[0](normal(ROWS, WIDTH))
        model[1](model[0](normal(1, WIDTH)))
    assert saved.output_bytes == {"0": (ROWS + 1) * INNER * FLOAT}


def test_fake_tensors_count_as_real_ones() -> None:
    with FakeTensorMode():
        model = mlp()
        with SavedActivations(model) as saved:
            model(torch.randn(ROWS, WIDTH)).sum().backward()
    assert saved.by_module == {"0": NARROW, "1": WIDE, "2": WIDE}
    assert [record.output_of for record in saved.records] == [None, "0", "1"]


@each_model
def test_measuring_changes_no_result(name: str) -> None:
    model = tiny_model(name)
    loss, gradients = loss_and_gradients(model)
    with SavedActivations(model):
        measured_loss, measured = loss_and_gradients(model)
    assert torch.equal(measured_loss, loss)
    assert all(torch.equal(measured[key], gradient) for key, gradient in gradients.items())


def test_attributes_rightly_after_an_exception_inside() -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    model = nn.ModuleDict({"broken": nn.Sequential(Function(fail)), "sound": nn.Tanh()})
    with SavedActivations(model) as saved:
        with pytest.raises(RuntimeError, match="out of memory"):
            model["broken"](normal(3))
        outside = normal(3).requires_grad_().square()
        model["sound"](outside)
    assert saved.by_module == {"": 3 * FLOAT, "sound": 3 * FLOAT}
