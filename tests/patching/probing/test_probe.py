"""A probe counts what a block keeps per token, and leaves no trace of itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hf_invact import patch_model, unpatch_model
from hf_invact.patching.isolation.undisturbed import undisturbed
from hf_invact.patching.probing.probe import Scope, measure, rounded_gradients
from hf_invact.patching.probing.recording import Call
from tests.helpers import dtype_name, normal, record_saved
from tests.models import each_model, loss_and_gradients, tiny_model

CPU = torch.device("cpu")


def scope_of(module: nn.Module, dtype: torch.dtype = torch.float32) -> Scope:
    few, many = (Call.of((normal(1, tokens, 8, dtype=dtype).requires_grad_(),), {}) for tokens in (4, 8))
    return Scope(module, few, many, 4, dtype, CPU)


class Block(nn.Module):
    """Its forward pass changes buffers, attributes, submodules' statistics, and the state of random generators."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.act, self.down = nn.Linear(8, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Linear(32, 8)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", None)
        self.count = 0
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.count += 1
        self.cache = self.last = x
        self.new_attribute = x
        return self.dropout(self.down(self.act(self.norm(self.up(x).transpose(1, 2)).transpose(1, 2))))


def test_buffers_attributes_and_statistics_are_as_they_were() -> None:
    model = nn.Sequential(Block(), nn.Tanh())
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    attributes = [dict(vars(module)) for module in model.modules()]
    assert patch_model(model).sites[0].before is not None, "the block was not probed"
    unpatch_model(model)
    assert [dict(vars(module)) for module in model.modules()] == attributes
    assert model[0].last is None
    for name, buffer in model.named_buffers():
        before, value = buffers[name]
        assert buffer is before
        assert torch.equal(buffer, value)


def test_weights_that_a_forward_pass_casts_are_as_they_were() -> None:
    class Casting(nn.Linear):
        """As bitsandbytes layers do."""

        def forward(self, x: Tensor) -> Tensor:
            self.bias.data = self.bias.data.to(torch.bfloat16)
            return super().forward(x) if self.bias.dtype == x.dtype else x @ self.weight.T + self.bias

    model = nn.Sequential(Casting(8, 32), nn.GELU(), nn.Linear(32, 8))
    bias, value = model[0].bias, model[0].bias.detach().clone()
    report = patch_model(model)
    assert report.sites[0].before is not None, "the block was not probed"
    assert model[0].bias is bias
    assert bias.dtype == torch.float32
    assert torch.equal(bias, value)
    assert patch_model(model) == report


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each_model
def test_modes_of_all_modules_are_as_they_were(name: str, training: bool) -> None:
    model = tiny_model(name).train(training)
    odd_one = next(
        module for module in model.modules() if isinstance(module, nn.Linear) or module.__class__ is nn.Dropout
    )
    odd_one.train(not training)
    modes = [module.training for module in model.modules()]
    report = patch_model(model)
    assert report.saved_bytes_per_token > 0
    unpatch_model(model)
    assert [module.training for module in model.modules()] == modes


def test_a_model_in_evaluation_mode_is_measured_in_training_mode() -> None:
    model = tiny_model("bert")
    assert patch_model(model) == patch_model(tiny_model("bert").eval())


@each_model
def test_random_numbers_continue_as_if_there_had_been_no_probe(name: str) -> None:
    model = tiny_model(name)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    patch_model(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_other_device_is_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError("seeds the generators of all devices")

    model = tiny_model("bert")
    monkeypatch.setattr(torch, "manual_seed", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    assert patch_model(model).saved_bytes_per_token > 0


@pytest.mark.parametrize("accumulated", [False, True], ids=["no gradients", "gradients"])
@each_model
def test_gradients_are_as_they_were(name: str, accumulated: bool) -> None:
    model = tiny_model(name)
    if accumulated:
        loss_and_gradients(model)
    before = {
        key: (weight.grad, None if weight.grad is None else weight.grad.clone())
        for key, weight in model.named_parameters()
    }
    patch_model(model)
    for key, weight in model.named_parameters():
        grad, value = before[key]
        assert weight.grad is grad
        assert grad is None or torch.equal(grad, value)


@each_model
def test_hooks_are_as_they_were_and_metering_has_ended(name: str) -> None:
    model = tiny_model(name)
    model.register_forward_hook(lambda *args: None)
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    hooks = [dict(getattr(module, kind)) for module in model.modules() for kind in kinds]
    with record_saved() as outside:
        patch_model(model)
        unpatch_model(model)
        assert [dict(getattr(module, kind)) for module in model.modules() for kind in kinds] == hooks
        outside.clear()
        torch.ones(3, requires_grad=True).square()
    assert len(outside) == 1


def test_gradients_are_recorded_inside_the_probe_and_stay_disabled_outside() -> None:
    with torch.no_grad():
        report = patch_model(tiny_model("bert"))
        assert not torch.is_grad_enabled()
    assert report == patch_model(tiny_model("bert"))


class Raises(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x: Tensor) -> Tensor:
        self.inner(x)
        raise ValueError("in the middle")


def test_leaves_no_trace_when_the_block_raises() -> None:
    module = Raises().eval()
    before, attributes = torch.get_rng_state(), [dict(vars(each)) for each in module.modules()]
    with pytest.raises(ValueError, match="in the middle"), undisturbed(module, CPU):
        module(torch.randn(1, 4, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert [dict(vars(each)) for each in module.modules()] == attributes
    assert module.inner.calls == 0
    assert not module.inner.norm.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_counts_what_one_more_token_keeps(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).to(dtype)
    scope = scope_of(model, dtype)
    # The inputs of the activation and of the second layer; neither its own input nor copies of weights.
    assert measure(scope, None).bytes_per_token == 2 * 32 * dtype.itemsize
    under_autocast = 2 * 32 * 2 + (8 * 2 if dtype == torch.float32 else 0)
    assert measure(scope, torch.bfloat16).bytes_per_token == under_autocast


def test_every_run_has_the_same_numbers() -> None:
    scope = scope_of(Block())
    first, second = measure(scope, None), measure(scope, None)
    assert torch.equal(first.output, second.output)
    assert first.output.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
def test_rounding_changes_a_gradient_by_a_few_epsilons_and_one_that_is_only_rounding_by_its_size(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    scope = scope_of(Block().to(dtype), dtype)
    plain, eps = measure(scope, None).gradients, torch.finfo(dtype).eps
    runs = [rounded_gradients(scope, None, seed) for seed in (1, 1, 2)]
    for name, gradient in plain.items():
        one, same, other = (run[name] for run in runs)
        assert torch.equal(one, same), name
        assert not torch.equal(one, other), name
        low, high = (0.3, 30) if name == "up.bias" else (eps / 3, 5 * eps)
        assert low < (one - gradient).double().norm() / gradient.double().norm() < high, name
