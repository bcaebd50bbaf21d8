"""What nobody expects of an adapter: it is computed as unpatched, raises what the unpatched one raises, or is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn

from hf_invact import patch_model
from tests.helpers import normal
from tests.sites.adapters.small import ALONE, BF16, DEMANDED, adapted, counted, layers, lora, train

pytestmark = pytest.mark.filterwarnings("ignore")
FEATURES = 16


class Double(nn.Linear):
    """A matrix that is not what it seems."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * 2)


class Negated(Tensor):
    """A weight that its class computes with."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        return -result if func is nn.functional.linear else result


def matrix(layer: Any) -> Any:
    return layer.lora_A["default"]


def replace_matrix(layer: Any) -> None:
    layer.lora_A["default"] = Double(FEATURES, 4, bias=False)


def replace_weight(layer: Any) -> None:
    matrix(layer).weight = nn.Parameter(normal(4, FEATURES, seed=5))


def add_bias(layer: Any) -> None:
    matrix(layer).bias = nn.Parameter(normal(4, seed=5))


def resize(layer: Any) -> None:
    matrix(layer).weight = nn.Parameter(normal(6, FEATURES, seed=5))
    layer.lora_B["default"].weight = nn.Parameter(normal(8, 6, seed=6))


def change_dtype(layer: Any) -> None:
    layer.lora_A.to(torch.float64)
    layer.lora_B.to(torch.float64)


def use_subclass(layer: Any) -> None:
    matrix(layer).weight = nn.Parameter(matrix(layer).weight.detach().as_subclass(Negated))


def parametrize_matrix(layer: Any) -> None:
    nn.utils.parametrizations.weight_norm(matrix(layer))


def freeze(layer: Any) -> None:
    layer.lora_A.requires_grad_(False)


def replace_dropout(layer: Any) -> None:
    layer.lora_dropout["default"] = nn.AlphaDropout(0.3)


def change_rate(layer: Any) -> None:
    layer.lora_dropout["default"].p = 0.7


def drop_everything(layer: Any) -> None:
    layer.lora_dropout["default"].p = 1.0


def drop_in_place(layer: Any) -> None:
    layer.lora_dropout["default"].inplace = True


def hook_matrix(layer: Any) -> None:
    matrix(layer).register_forward_pre_hook(lambda module, args: (args[0] * 3,))


def hook_result(layer: Any) -> None:
    matrix(layer).register_forward_hook(lambda module, args, result: result + args[0].sum())


def hook_dropout(layer: Any) -> None:
    layer.lora_dropout["default"].register_forward_hook(lambda module, args, result: result * 2 + args[0])


def hook_backward(layer: Any) -> None:
    matrix(layer).register_full_backward_hook(
        lambda module, dx, dy: tuple(None if each is None else each * 2 for each in dx)
    )


CHANGES: list[Callable[[Any], None]] = [
    replace_matrix,
    replace_weight,
    add_bias,
    resize,
    change_dtype,
    use_subclass,
    parametrize_matrix,
    freeze,
    replace_dropout,
    change_rate,
    drop_everything,
    drop_in_place,
    hook_matrix,
    hook_result,
    hook_dropout,
    hook_backward,
]


def one_layer(dropout: float = 0.1) -> tuple[Any, Any]:
    """A model, and its layer with an adapter."""
    torch.manual_seed(0)
    model: Any = get_peft_model(nn.Sequential(nn.Linear(FEATURES, 8)), lora(lora_dropout=dropout, target_modules=["0"]))
    return model.train(), model.base_model.model[0]


def result_and_gradients(model: Any, x: Tensor) -> list[Tensor]:
    torch.manual_seed(7)
    y = model(x * 1)  # one may overwrite it
    leaves = [x, *model.parameters()] if x.requires_grad else [*model.parameters()]
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    gradients = torch.autograd.grad(y.square().sum(), leaves, allow_unused=True) if y.requires_grad else ()
    return [y, *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)]


@pytest.mark.parametrize("when", ["before patching", "after patching"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.replace("_", " "))
def test_a_changed_layer_is_as_unpatched(change: Callable[[Any], None], when: str) -> None:
    def run(patched: bool) -> list[Tensor]:
        model, layer = one_layer()
        torch.manual_seed(4)
        if when == "before patching":
            change(layer)
        if patched:
            patch_model(model, ALONE)
        torch.manual_seed(4)
        if when == "after patching":
            change(layer)
        return result_and_gradients(model, normal(3, 5, FEATURES).requires_grad_())

    assert all(map(torch.equal, run(True), run(False)))


INPUTS: dict[str, Callable[[], Tensor]] = {
    "no row": lambda: torch.empty(0, 5, FEATURES, requires_grad=True),
    "one row": lambda: normal(FEATURES).requires_grad_(),
    "transposed": lambda: normal(FEATURES, 5).requires_grad_().t(),
    "expanded": lambda: normal(1, FEATURES).requires_grad_().expand(5, FEATURES),
    "no gradient": lambda: normal(3, 5, FEATURES),
    "infinite": lambda: (normal(3, 5, FEATURES) * torch.inf).requires_grad_(),
    "NaN": lambda: (normal(3, 5, FEATURES) * torch.nan).requires_grad_(),
}


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_any_input(make: Callable[[], Tensor], dropout: float) -> None:
    (plain, _), (model, _) = one_layer(dropout), one_layer(dropout)
    patch_model(model, DEMANDED)
    x = make()
    for result, expected in zip(result_and_gradients(model, x), result_and_gradients(plain, x), strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "x",
    [torch.ones(2, FEATURES + 1), torch.ones(2, FEATURES, dtype=torch.long), torch.ones(())],
    ids=["wide", "int", "0"],
)
def test_an_input_that_does_not_fit_raises_as_unpatched(x: Tensor) -> None:
    (plain, _), (model, _) = one_layer(), one_layer()
    patch_model(model, DEMANDED)
    with pytest.raises(RuntimeError) as expected:
        plain(x)
    with pytest.raises(RuntimeError) as found:
        model(x)
    assert str(found.value) == str(expected.value)


def test_an_adapter_that_overflows_in_float16() -> None:
    def run(patched: bool) -> list[Tensor]:
        model, _ = one_layer()
        model.half()
        if patched:
            patch_model(model, DEMANDED)
        return result_and_gradients(model, (normal(3, FEATURES) * 30000).half().requires_grad_())

    results, plain = run(True), run(False)
    assert any(not result.isfinite().all() for result in plain)
    for result, expected in zip(results, plain, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0, equal_nan=True)


def test_hooks_stop_it_and_their_removal_starts_it_again() -> None:
    model, layer = one_layer()
    patch_model(model, DEMANDED)
    x = normal(3, FEATURES).requires_grad_()
    seen: list[type] = []
    handle = layer.lora_A["default"].register_forward_pre_hook(lambda module, args: seen.append(type(args[0])))
    for expected in (0, 1):
        with counted() as calls:
            model(x)
        assert calls.count == expected
        handle.remove()
    assert seen == [Tensor]


def test_a_hook_that_is_there_before_patching_is_the_reason() -> None:
    model, layer = one_layer()
    hook_matrix(layer)
    (site,) = patch_model(model, ALONE).sites
    assert "other code has a hook on its adapter" in site.reason


@pytest.mark.parametrize("uses_autocast", [False, True])
def test_a_user_who_disables_the_casts_of_peft(uses_autocast: bool) -> None:
    """Adapters then get the input in its own dtype, which works under autocast or where that is theirs."""

    def run(patched: bool) -> list[float]:
        model = adapted(dtype=BF16, float32=uses_autocast)
        if patched:
            patch_model(model, DEMANDED)
        with disable_input_dtype_casting(model):
            losses = train(model, uses_autocast=uses_autocast).losses
        return losses + train(model, uses_autocast=uses_autocast).losses

    assert run(True) == run(False)


def test_dropouts_of_a_removed_adapter_are_forgotten() -> None:
    model = adapted()
    patch_model(model, DEMANDED)
    model.delete_adapter("default")
    assert not any(len(layer.lora_A) for layer in layers(model).values())
    model.add_adapter("default", lora(lora_dropout=0.3))
    model.set_adapter("default")
    assert train(model, 1).calls == len(layers(model))
