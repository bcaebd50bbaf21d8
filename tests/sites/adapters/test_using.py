"""Whatever is done with a model whose adapters are patched gives what it gives with the unpatched one, to the bit."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_invact import InvActConfig, inverted_activations, patch_model, unpatch_model
from tests.models import batch, tiny_model
from tests.sites.adapters.small import ALONE, adapted, counted, layers, lora, train

pytestmark = pytest.mark.filterwarnings("ignore")
Results = list[Tensor | float]


@cache
def _patched_once() -> Any:
    model = adapted()
    assert patch_model(model, ALONE).patched == len(layers(model))
    return model


def adapted_and_patched() -> Any:
    """Copied, since measuring takes most of the time."""
    return copy.deepcopy(_patched_once())


def logits(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**batch(model), **options).logits
    return result


def state(model: nn.Module) -> Results:
    return [torch.tensor([len(key) for key in model.state_dict()]), *model.state_dict().values()]


def add_other(model: Any) -> None:
    """Another adapter, with a dropout of its own."""
    torch.manual_seed(3)
    model.add_adapter("other", lora(r=2, lora_dropout=0.2))


def switching(model: Any) -> Results:
    add_other(model)
    losses = train(model).losses
    model.set_adapter("other")
    losses += train(model).losses
    model.base_model.set_adapter(["default", "other"])
    losses += train(model).losses
    model.delete_adapter("other")
    return [*losses, *train(model).losses]


def adding_with_another_variant(model: Any) -> Results:
    torch.manual_seed(3)
    model.add_adapter("dora", lora(use_dora=True, lora_dropout=0.1))
    model.set_adapter("dora")
    return [*train(model).losses]


def merging(model: Any) -> Results:
    model.eval()
    results: Results = [logits(model)]
    for safe in (False, True):
        model.merge_adapter(safe_merge=safe)
        results += [logits(model), *state(model)]
        model.unmerge_adapter()
        results += [logits(model), *state(model)]
    model.train()
    return [*results, *train(model).losses]


def merging_to_unload(model: Any) -> Results:
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.model.layers[0].self_attn.q_proj) is nn.Linear
    return [*state(merged), logits(merged.eval())]


def merging_adapters(model: Any) -> Results:
    add_other(model)
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="cat")
    model.set_adapter("both")
    return [*state(model), *train(model).losses]


def disabling(model: Any) -> Results:
    model.enable_input_require_grads()
    with model.disable_adapter():
        loss = model(**batch(model)).loss
    return [loss.item(), *train(model).losses]


def mixing_in_a_batch(model: Any) -> Results:
    add_other(model)
    return [
        logits(model.eval(), adapter_names=["default", "other"]),
        logits(model, adapter_names=["__base__", "other"]),
    ]


def saving(model: Any) -> Results:
    train(model, 1)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "adapter_model.safetensors")
        loaded = PeftModel.from_pretrained(tiny_model("llama"), folder, is_trainable=True)
        model.load_adapter(folder, "loaded", is_trainable=True)
        model.set_adapter("loaded")
    return [*map(weights.__getitem__, sorted(weights)), *train(loaded.train()).losses, *train(model).losses]


def loading_a_state(model: Any) -> Results:
    other = adapted(config=lora(lora_dropout=0.1, init_lora_weights="pissa"))
    model.load_state_dict(other.state_dict())
    return [*train(model).losses]


def copying(model: Any) -> Results:
    return [*train(copy.deepcopy(model)).losses, *train(model).losses]


def pickling(model: Any) -> Results:
    return [*train(pickle.loads(pickle.dumps(model))).losses]


def saving_the_module(model: Any) -> Results:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return [*train(torch.load(file, weights_only=False)).losses]


def generating(model: Any) -> Results:
    def generate() -> Tensor:
        generated: Tensor = model.generate(
            input_ids=batch(model)["input_ids"][:, :4], max_new_tokens=6, do_sample=False
        )
        return generated

    return [*train(model).losses, generate(), *train(model).losses, generate()]


def evaluating(model: Any) -> Results:
    model.eval()
    results: Results = [logits(model)]
    with torch.inference_mode():
        results.append(model(**batch(model)).logits.clone())
    loss = model(**batch(model)).loss  # with gradients, and no dropout
    loss.backward()
    return [*results, *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def checkpointing(*, reentrant: bool) -> Callable[[Any], Results]:
    def run(model: Any) -> Results:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        trained = train(model)
        return [*trained.losses, *trained.gradients.values()]

    return run


def offloading(model: Any) -> Results:
    torch.manual_seed(0)
    with torch.autograd.graph.save_on_cpu():
        loss = model(**batch(model)).loss
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters() if weight.grad is not None)]


def accumulating(model: Any) -> Results:
    torch.manual_seed(0)
    for seed in range(3):
        model(**batch(model, seed=seed)).loss.backward()
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def converting(model: Any) -> Results:
    """The adapters as well: what is cast to their dtype is asked for at every call."""
    return [*train(model.to(torch.bfloat16)).losses, *train(model.float()).losses]


def freezing(model: Any) -> Results:
    model.requires_grad_(False)
    layers(model)["base_model.model.model.layers.1.mlp.down_proj"].lora_B.requires_grad_(True)
    trained = train(model)
    return [*trained.losses, *trained.gradients.values()]


USES: list[Callable[[Any], Results]] = [
    switching,
    adding_with_another_variant,
    merging,
    merging_to_unload,
    merging_adapters,
    disabling,
    mixing_in_a_batch,
    saving,
    loading_a_state,
    copying,
    pickling,
    saving_the_module,
    generating,
    evaluating,
    offloading,
    accumulating,
    converting,
    freezing,
]
NAMED = {use.__name__.replace("_", " "): use for use in USES}
NAMED |= {f"checkpointing, reentrant {flag}": checkpointing(reentrant=flag) for flag in (False, True)}


@pytest.mark.parametrize("use", NAMED.values(), ids=NAMED)
def test_it_is_as_unpatched(use: Callable[[Any], Results]) -> None:
    plain, patched = use(adapted()), use(adapted_and_patched())
    assert len(plain) == len(patched) > 0
    for result, expected in zip(patched, plain, strict=True):
        same = torch.equal(result, expected) if isinstance(expected, Tensor) else result == expected  # type: ignore[arg-type]
        assert same


@pytest.mark.parametrize("use", [copying, pickling, saving_the_module])
def test_copies_are_patched(use: Callable[[Any], Results]) -> None:
    model = adapted_and_patched()
    with counted() as calls:
        use(model)
    assert calls.count == {"copying": 6}.get(use.__name__, 3) * len(layers(model))


def test_an_adapter_that_is_added_later_is_patched() -> None:
    model = adapted_and_patched()
    add_other(model)
    model.set_adapter("other")
    assert train(model, 1).calls == len(layers(model))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled(backend: str) -> None:
    """Compiled dropout draws other random numbers than PyTorch's own, with inductor."""
    dropout = 0.1 if backend == "aot_eager" else 0.0
    torch._dynamo.reset()

    def run(patched: bool) -> list[float]:
        model = adapted(config=lora(lora_dropout=dropout), dtype=torch.bfloat16, num_hidden_layers=1)
        if patched:
            patch_model(model, ALONE)
        compiled = torch.compile(model, backend=backend, fullgraph=True)
        torch.manual_seed(0)
        loss = compiled(**batch(model)).loss
        loss.backward()
        return [loss.item(), *(w.grad.norm().item() for w in model.parameters() if w.grad is not None)]

    plain, patched = run(False), run(True)
    if backend == "aot_eager":
        assert patched == plain
    else:
        assert patched == pytest.approx(plain, rel=0.02)


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Classes and attributes, whatever they hold."""
    return {name: (type(module), sorted(vars(module)), repr(module)) for name, module in model.named_modules()}


def test_unpatching_puts_everything_back() -> None:
    model = adapted()
    before = snapshot(model)
    for config in (ALONE, ALONE, InvActConfig(), ALONE):
        patch_model(model, config)
    assert snapshot(model) != before
    add_other(model)
    unpatch_model(model)
    model.delete_adapter("other")
    assert snapshot(model) == before
    with inverted_activations(model, ALONE):
        assert train(copy.deepcopy(model), 1).calls == len(layers(model))
    assert snapshot(model) == before
    assert train(model).losses == train(adapted()).losses


def test_a_later_config_applies() -> None:
    model = adapted()
    patch_model(model, ALONE)
    patch_model(model, InvActConfig(sites=("adapter",), exclude=("*.mlp",)))
    assert train(copy.deepcopy(model), 1).calls == 2 * 4
    patch_model(model, InvActConfig(sites=("adapter",), include=("*.q_proj",)))
    assert train(copy.deepcopy(model), 1).calls == 2
    patch_model(model, InvActConfig(sites=("activation",)))
    assert train(copy.deepcopy(model), 1).calls == 0


def test_names_and_printed_form_are_those_of_the_unpatched_model() -> None:
    model, plain = adapted_and_patched(), adapted()
    assert repr(model) == repr(plain)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert all(isinstance(layer, type(layers(plain)[name])) for name, layer in layers(model).items())
