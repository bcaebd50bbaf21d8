"""Metering leaves no trace: afterwards, in copies and pickles, and for other threads."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import hf_invact
from hf_invact.memory import SavedActivations
from tests.helpers import normal, record_saved
from tests.memory.small import INNER, NARROW, ROWS, WIDE, WIDTH, Function, mlp
from tests.models import batch, each_model, tiny_model


def attributes(model: nn.Module) -> list[dict[str, object]]:
    return [dict(vars(module)) for module in model.modules()]


@each_model
def test_leaves_nothing_on_the_model(name: str) -> None:
    model = tiny_model(name)
    before = attributes(model)
    with record_saved() as outside:
        with SavedActivations(model) as saved:
            model(**batch(model)).loss.backward()
        assert attributes(model) == before
        assert outside == []
        normal(3).requires_grad_().square()
    assert len(outside) == 1
    assert sum(record.bytes for record in saved.records) == saved.total_bytes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_leaves_nothing_on_the_model_when_an_exception_leaves_it(error: type[BaseException]) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error("out of memory")

    model = nn.Sequential(mlp(), nn.Sequential(Function(fail)))
    before = attributes(model)
    with record_saved() as outside:
        with pytest.raises(error, match="out of memory"), SavedActivations(model) as saved:
            model(normal(ROWS, WIDTH))
        assert attributes(model) == before
        normal(3).requires_grad_().square()
    assert len(outside) == 1
    assert saved.by_module == {"0.0": NARROW, "0.1": WIDE, "0.2": WIDE}


def test_leaves_nothing_on_the_model_where_hooks_are_forbidden() -> None:
    model = mlp()
    before = attributes(model)
    saved = SavedActivations(model)
    with torch.autograd.graph.disable_saved_tensors_hooks("not here"), pytest.raises(RuntimeError, match="not here"):
        saved.__enter__()
    assert attributes(model) == before
    with saved:
        model(normal(ROWS, WIDTH))
    assert saved.total_bytes == NARROW + 2 * WIDE


@pytest.mark.parametrize("forward", [torch.tanh, hf_invact.functional.gelu, hf_invact.functional.relu2])
def test_a_graph_that_no_backward_pass_frees_is_freed_with_its_output(forward: Callable[[Tensor], Tensor]) -> None:
    model = nn.Linear(4, 8)
    weight = weakref.ref(model.weight)
    with SavedActivations(model) as saved:
        y = forward(model(normal(2, 4)))
    assert saved.total_bytes > 0
    result = weakref.ref(y)
    del y, model, saved
    assert result() is None
    gc.collect()  # a module may be part of cycles
    assert weight() is None


def pickled(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copied: nn.Module = torch.load(buffer, weights_only=False)
    return copied


class _CopiesItself(nn.Module):
    """Copies all of its attributes itself, as `torch.fx.GraphModule` does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y

    def __getstate__(self) -> dict[str, object]:
        return vars(self)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("make", [mlp, lambda: nn.Sequential(_CopiesItself())], ids=["plain", "with its own state"])
def test_a_copy_made_while_it_is_metered_is_not(
    make: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    model, x = make(), normal(ROWS, WIDTH)
    with SavedActivations(model) as saved:
        model(x)
        twin = copied(model)
        outputs = dict(saved.output_bytes)
        before = saved.total_bytes
        with torch.no_grad():
            twin(x)
        assert saved.output_bytes == outputs
    twin(x).sum().backward()
    assert saved.total_bytes == before
    assert all(module._compiled_call_impl is None for module in twin.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())


class _Waits(nn.Module):
    """Any thread but the main one waits inside for an event."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may_leave = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if threading.current_thread() is not threading.main_thread():
            self.entered.set()
            self.may_leave.wait(10)
        return x


def test_another_thread_that_trains_the_model_is_neither_counted_nor_disturbed() -> None:
    model, x = mlp().insert(1, waits := _Waits()), normal(ROWS, WIDTH)
    waits.register_forward_hook(lambda module, args, output: None)  # PyTorch then runs hooks after the forward

    def train() -> None:
        model(normal(2 * ROWS, WIDTH)).sum().backward()

    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(train)
        waits.entered.wait(10)
        with SavedActivations(model) as saved:  # the thread is inside the model already
            model(x)
            waits.may_leave.set()
            training.result()
            thread.submit(train).result()
            waits.may_leave.clear()
            training = thread.submit(train)
        waits.may_leave.set()
        training.result()  # the thread leaves the model after the meter has ended
    assert saved.by_module == {"0": NARROW, "2": WIDE, "3": WIDE}
    assert saved.output_bytes == {"0": WIDE, "1": WIDE, "2": WIDE, "3": NARROW}


def test_two_threads_may_meter_one_model_and_end_in_any_order() -> None:
    model, x = mlp(), normal(ROWS, WIDTH)
    before = attributes(model)
    first, second = SavedActivations(model), SavedActivations(model)
    with first:
        inside, left = threading.Event(), threading.Event()

        def meter() -> None:
            with second:
                inside.set()
                left.wait(10)
                model(torch.cat([x, x]))

        thread = threading.Thread(target=meter)
        thread.start()
        inside.wait(10)
        model(x)
    left.set()
    thread.join()
    assert attributes(model) == before
    assert (first.total_bytes, second.total_bytes) == (NARROW + 2 * WIDE, 2 * (NARROW + 2 * WIDE))
    assert (first.output_bytes["0"], second.output_bytes["0"]) == (WIDE, 2 * WIDE)


def test_replicas_of_data_parallel_run_themselves() -> None:
    model = mlp()
    x = normal(ROWS, WIDTH)
    with SavedActivations(model):
        replica = nn.Sequential(*(layer._replicate_for_data_parallel() for layer in model))
        with torch.no_grad():
            replica[0].weight, replica[0].bias = 2 * model[0].weight, 2 * model[0].bias
        found = replica[0](x)
    assert found.shape == (ROWS, INNER)
    assert torch.equal(found, nn.functional.linear(x, replica[0].weight, replica[0].bias))


def test_an_inplace_change_of_what_is_saved_is_an_error_as_ever() -> None:
    x = normal(ROWS, WIDTH).requires_grad_()
    with SavedActivations(nn.Identity()):
        y = x.exp()
        y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
