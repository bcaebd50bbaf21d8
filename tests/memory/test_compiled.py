"""Compiled parts of a model are found, and metering causes no recompilation."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import hf_invact
from hf_invact.memory import SavedActivations
from hf_invact.memory.compiled import compiled_modules
from tests.helpers import normal
from tests.memory.small import NARROW, ROWS, WIDE, WIDTH, Function, mlp
from tests.models import each_model, tiny_model


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sin()


class CompiledByItsClass(Sine):
    @torch.compile
    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


class Excluded(Sine):
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        return x.cos()

    @torch.compiler.disable(recursive=False)
    def step(self, x: Tensor) -> Tensor:
        return self.forward(x)


def compile_itself(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def compile_a_layer(model: nn.Module) -> nn.Module:
    model[0][1].compile()
    model[0].compile()  # the layer is inside of it
    return model


def wrap_a_layer(model: nn.Module) -> nn.Module:
    model[0][1] = torch.compile(model[0][1])
    return model


def compile_a_forward(model: nn.Module) -> nn.Module:
    model[0][0].forward = torch.compile(model[0][0].forward)
    return model


def wrap_a_compiled_forward(model: nn.Module) -> nn.Module:
    compiled = torch.compile(model[0][0].forward)
    model[0][0].forward = functools.wraps(compiled)(lambda x: compiled(x))
    return model


def hold_a_compiled_function(model: nn.Module) -> nn.Module:
    model[1].step = functools.partial(torch.compile(torch.clamp), min=0)
    return model


def add_a_compiled_class(model: nn.Module) -> nn.Module:
    model.append(CompiledByItsClass())
    return model


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda model: model, []),
        (lambda model: model.append(Excluded()), []),
        (compile_itself, [""]),
        (torch.compile, [""]),
        (compile_a_layer, ["0"]),
        (wrap_a_layer, ["0.1"]),
        (compile_a_forward, ["0.0"]),
        (wrap_a_compiled_forward, ["0.0"]),
        (hold_a_compiled_function, ["1"]),
        (add_a_compiled_class, ["2"]),
    ],
)
def test_names_the_outermost_modules_that_run_compiled_code(
    change: Callable[[nn.Module], nn.Module], names: list[str]
) -> None:
    model = nn.Sequential(nn.Sequential(Sine(), Sine()), Sine())
    assert compiled_modules(change(model)) == names


@each_model
def test_a_model_that_nobody_compiled_has_none(name: str) -> None:
    model = tiny_model(name)
    assert compiled_modules(model) == []
    hf_invact.patch_model(model)
    assert compiled_modules(model) == []


def test_a_model_that_compiles_its_parts_is_compiled_once_and_traced_whole() -> None:
    """Compiled by a function that cannot be found from outside; hooks on modules would be traced and guarded."""
    counter = CompileCounter()
    inner = mlp()
    compiled = torch.compile(lambda x: inner(x).square(), backend=counter, fullgraph=True)
    model = nn.Sequential(Function(compiled), nn.Tanh())
    model[0].inner = inner
    for _ in range(2):
        with SavedActivations(model) as saved:
            model(normal(ROWS, WIDTH).requires_grad_()).sum().backward()
        model(normal(ROWS, WIDTH).requires_grad_()).sum().backward()
    assert counter.frame_count == 1
    assert saved.by_module["1"] == NARROW


class _Block(nn.Module):
    """With a hook, which makes TorchDynamo trace the whole call of a module, not only its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.layers[1].register_forward_hook(lambda module, args, output: None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.sin()


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Block(), _Block()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x.square()


@pytest.mark.parametrize(
    "of_it", [lambda model: [model], lambda model: list(model.blocks)], ids=["the model", "its layers"]
)
def test_a_compiled_model_is_measured_as_a_whole_and_not_compiled_again(
    of_it: Callable[[nn.Module], list[nn.Module]],
) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    model = _Blocks()
    loss = model(normal(ROWS, WIDTH)).sum()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    for module in of_it(model):
        module.compile(backend=counter, fullgraph=True)
    for _ in range(2):
        with SavedActivations(model) as saved:
            found = model(normal(ROWS, WIDTH)).sum()
        torch.testing.assert_close(torch.autograd.grad(found, list(model.parameters())), expected)
        model(normal(ROWS, WIDTH)).sum().backward()
    assert counter.frame_count == len(of_it(model))
    assert saved.total_bytes >= 2 * NARROW + 2 * WIDE


def test_code_between_compiled_graphs_runs_as_ever() -> None:
    """After a graph break, TorchDynamo compiles the next functions of the model, not those of the meter."""

    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp()

        def forward(self, x: Tensor) -> Tensor:
            x = x.sin()
            torch._dynamo.graph_break()
            y: Tensor = self.layers(x)
            return y.square()

    graphs = []
    for is_metered in (False, True):
        torch.compiler.reset()
        counter = CompileCounterWithBackend("aot_eager")
        model = Breaks()
        run = torch.compile(lambda model, x: model(x), backend=counter)
        with SavedActivations(model) if is_metered else contextlib.nullcontext():
            run(model, normal(ROWS, WIDTH)).sum().backward()
        run(model, normal(ROWS, WIDTH)).sum().backward()
        graphs.append([len(graph.graph.nodes) for graph in counter.graphs])
    assert graphs[1] == graphs[0]
