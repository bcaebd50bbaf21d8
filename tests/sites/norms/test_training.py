"""Models whose norms are patched train as unpatched ones do, and keep less, by as much as the report says."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from hf_invact import InvActConfig, inverted_activations, patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from hf_invact.sites import patched_sites
from tests.sites.norms.small import ALL, NORMED, NORMS, PRECISIONS, Normed, each_normed, each_precision

# Of a gradient's size, by the precision: what norms that keep their output may change, beside what rounding changes.
CLOSE = {"float32": 1e-4, "bfloat16": 0.1, "autocast": 0.1}
llama = NORMED[0]
each_of_four = pytest.mark.parametrize(
    "normed", [each for each in NORMED if str(each) in ("gpt2", "bert", "mistral", "llama")], ids=str
)


@contextmanager
def running(precision: str) -> Iterator[InvActConfig]:
    """The autocast of a precision, and the config for norms under it."""
    dtype = PRECISIONS[precision][1]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        yield NORMS


def loss_and_gradients(model: nn.Module, normed: Normed) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**normed.batch()).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@each_precision
@each_normed
def test_plans_losses_and_gradients(normed: Normed, precision: str) -> None:
    model = normed.model(PRECISIONS[precision][0])
    with running(precision) as config:
        plain, expected = loss_and_gradients(model, normed)
        report = patch_model(model, config)
        assert {site.name: site.plan for site in report.sites} == {
            site.name: normed.plan(site.name, precision == "autocast") for site in report.sites
        }
        loss, gradients = loss_and_gradients(model, normed)
    assert torch.equal(loss, plain)
    assert gradients.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= CLOSE[precision] * gradient.norm() + 1e-3 * CLOSE[
            precision
        ] * largest


@each_precision
@each_normed
def test_a_training_step_keeps_less_by_as_much_as_the_report_says(normed: Normed, precision: str) -> None:
    """With norms alone, and with all that can be patched."""
    model = normed.model(PRECISIONS[precision][0])

    def per_token() -> float:
        """Without copies of weights, which autocast keeps once."""
        kept = []
        for sequences in (2, 4):
            with SavedActivations(model) as saved:
                model(**normed.batch(sequences))
            kept.append(saved.total_bytes)
        return (kept[1] - kept[0]) / (2 * 8)

    with running(precision) as config:
        plain = per_token()
        for each in (config, ALL):
            report = patch_model(model, each)
            assert plain - per_token() == report.saved_bytes_per_token


@each_of_four
def test_the_modules_stay_what_they_are(normed: Normed) -> None:
    model = normed.model()
    modules = {name: (module, type(module), dict(vars(module))) for name, module in model.named_modules()}
    weights, state = list(model.parameters()), list(model.state_dict())
    patch_model(model, NORMS)
    for name, module in model.named_modules():
        assert module is modules[name][0]
        assert isinstance(module, modules[name][1])
        assert type(module).__name__ == modules[name][1].__name__
    assert all(after is before for after, before in zip(model.parameters(), weights, strict=True))
    assert list(model.state_dict()) == state
    assert any(True for _ in patched_sites(model))
    unpatch_model(model)
    for module, cls, attributes in modules.values():
        assert type(module) is cls
        assert vars(module).keys() == attributes.keys()


@each_of_four
def test_without_gradients_every_bit_is_the_same(normed: Normed) -> None:
    model = normed.model().eval()
    ids = normed.batch()["input_ids"]
    with torch.no_grad():
        expected = model(ids).logits
        with inverted_activations(model, NORMS):
            assert torch.equal(model(ids).logits, expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
@each_of_four
def test_copies_are_patched_and_can_be_unpatched(normed: Normed, copied) -> None:  # type: ignore[no-untyped-def]
    model = normed.model()
    patch_model(model, NORMS)
    twin = copied(model)
    names = [site.name for site in patched_sites(model)]
    assert [site.name for site in patched_sites(twin)] == names
    loss, gradients = loss_and_gradients(model, normed)
    twin_loss, twin_gradients = loss_and_gradients(twin, normed)
    assert torch.equal(loss, twin_loss)
    assert all(torch.equal(gradients[name], twin_gradients[name]) for name in gradients)
    unpatch_model(twin)
    assert [site.name for site in patched_sites(model)] == names
    assert list(patched_sites(twin)) == []


@pytest.mark.parametrize("use_reentrant", [True, False])
@each_of_four
def test_under_gradient_checkpointing(normed: Normed, use_reentrant: bool) -> None:
    model = normed.model()
    patch_model(model, NORMS)
    loss, gradients = loss_and_gradients(model, normed)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    checkpointed, again = loss_and_gradients(model, normed)
    assert torch.equal(loss, checkpointed)
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-6)


@each_of_four
def test_saved_on_the_cpu(normed: Normed) -> None:
    model = normed.model()
    patch_model(model, NORMS)
    _, gradients = loss_and_gradients(model, normed)
    with torch.autograd.graph.save_on_cpu():
        _, again = loss_and_gradients(model, normed)
    assert all(torch.equal(again[name], gradient) for name, gradient in gradients.items())


@pytest.mark.slow
@pytest.mark.parametrize("normed", [each for each in NORMED if str(each) in ("llama", "bert", "t5")], ids=str)
def test_compiled(normed: Normed) -> None:
    """Without a break of the graph, and with the gradients that the unpatched model has."""
    model = normed.model()
    plain, expected = loss_and_gradients(model, normed)
    patch_model(model, NORMS)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, gradients = loss_and_gradients(compiled, normed)
    torch.testing.assert_close(loss, plain)
    for name, gradient in expected.items():
        assert (gradients[f"_orig_mod.{name}"] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7


def test_weights_that_pass_through_zero() -> None:
    """Losses of a training whose norm weights are moved through 0 stay those of the unpatched one."""
    losses = []
    for is_patched in (False, True):
        model = llama.model()
        if is_patched:
            patch_model(model, NORMS)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        norms: list[nn.Parameter] = [weight for name, weight in model.named_parameters() if "norm" in name]
        found = []
        for step in range(6):
            with torch.no_grad():
                for weight in norms:
                    weight[step] = 0.0
                    weight[step + 8] = -1e-30
            optimizer.zero_grad()
            loss, gradients = loss_and_gradients(model, llama)
            assert all(gradient.isfinite().all() for gradient in gradients.values())
            optimizer.step()
            found.append(loss)
        losses.append(torch.stack(found))
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)


def test_what_is_trained_beside_frozen_norms() -> None:
    """Frozen norms get no gradient, and pass on that of what is before them."""
    model = llama.model()
    for name, weight in model.named_parameters():
        weight.requires_grad_("norm" not in name)
    _, expected = loss_and_gradients(model, llama)
    report = patch_model(model, NORMS)
    assert report.patched == 2 * 2 + 1
    _, gradients = loss_and_gradients(model, llama)
    assert gradients.keys() == expected.keys()
    assert not any("norm" in name for name in gradients)
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm()
