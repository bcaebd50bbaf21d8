"""A user's own activation: fitted, measured, refused with a reason, and found in models."""

from __future__ import annotations

import copy
import pickle
import platform
import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hf_invact import curves, patch_model, register_activation
from hf_invact.curves import Curve, UnsuitableActivation, fit_curve
from hf_invact.curves.shape import Function
from hf_invact.nn import InvertedActivation
from hf_invact.ops import invert
from hf_invact.ops.accuracy import error_of
from hf_invact.sites.activations.recognize import curve_of
from tests.helpers import all_numbers, each_half_dtype, exact_derivative, normal, output_and_gradient
from tests.models import ACTIVATIONS, loss_and_gradients, tiny_model


def telu(x: Tensor) -> Tensor:
    return x * torch.tanh(torch.exp(x))


def telu_derivative(x: Tensor) -> Tensor:
    exp = torch.exp(x.clamp(max=100))
    return torch.tanh(exp) + x * exp / torch.cosh(exp.clamp(max=300)) ** 2


TELU = fit_curve("telu", telu, telu_derivative, max_error=1e-5)


_fitted_once = cache(fit_curve)


@pytest.fixture(autouse=True)
def fitted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same function is fitted once for all tests: what is measured and registered is done anew in each."""
    monkeypatch.setattr("hf_invact.sites.activations.register.fit_curve", _fitted_once)


class TeLU(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return telu(input)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, input: Tensor) -> Tensor:
        return F.silu(self.scale * input)


def registered_curve() -> Curve:
    registered = register_activation("telu", telu)
    assert registered is not None
    return registered.curve


@pytest.mark.parametrize("derivative", [None, telu_derivative], ids=["autograd", "given"])
def test_errors_are_near_the_floor(derivative: Function | None) -> None:
    registered = register_activation("telu", telu, derivative)
    assert registered is not None
    bf16, fp16, fp32 = (registered.errors[dtype] for dtype in (torch.bfloat16, torch.float16, torch.float32))
    assert bf16.floor is not None
    assert fp16.floor is not None
    # In half precision it rounds twice, which moves the output by more than the one rounding that is assumed.
    assert bf16.rms < 1.2 * bf16.floor.rms < 0.004
    assert fp16.rms < 1.2 * fp16.floor.rms < 0.0008
    assert fp32.rms < 2e-6
    assert fp32.max < 1.5e-4


def test_report_is_a_table() -> None:
    lines = str(register_activation("telu", telu)).splitlines()
    assert lines[0] == "telu: turns at x = -1.07886"
    assert lines[1].split() == ["dtype", "rms", "error", "/", "floor", "largest", "/", "floor"]
    assert [line.split()[0] for line in lines[2:]] == ["bfloat16", "float16", "float32"]


@each_half_dtype
def test_every_number_has_a_gradient(dtype: torch.dtype) -> None:
    """Also where autograd's own formula is infinity times zero."""
    x = all_numbers(dtype)
    x = x[x.isfinite()]
    y, dx = output_and_gradient(lambda leaf: invert(leaf, TELU), x)
    assert torch.equal(y, telu(x))
    exact = telu_derivative(x.double())
    assert (dx.double() - exact).abs().max() < 0.03


def test_a_rising_function_needs_no_bit() -> None:
    registered = register_activation("steep", lambda x: F.softplus(x, beta=3.0))
    assert registered is not None
    x = normal(1000)
    _, dx = output_and_gradient(lambda leaf: invert(leaf, registered.curve), x)
    assert registered.curve.x_min is None
    assert str(registered).startswith("steep: rises everywhere\n")
    assert (dx.double() - exact_derivative(registered.curve, x)).abs().max() < 1e-6


@settings(max_examples=8, deadline=None)
@given(
    steepness=st.floats(0.3, 6.0),
    size=st.floats(0.05, 20.0),
    base=st.sampled_from([F.silu, F.gelu, F.mish]),
)
def test_families_of_functions_are_fitted(steepness: float, size: float, base: Function) -> None:
    curve = fit_curve("scaled", lambda x: size * base(steepness * x), None, max_error=1e-5 * size * steepness)
    x = torch.linspace(-60, 60, 100_001, dtype=torch.float64) / steepness
    assert error_of(curve, x).abs().max() < 2e-6 * size * steepness


@pytest.mark.parametrize("activation", [telu, TeLU()], ids=["function", "module"])
def test_a_model_that_uses_it_is_patched(activation: object) -> None:
    model = tiny_model("bert", activation=activation)
    plain = copy.deepcopy(model)
    register_activation("telu", telu, used_as=[TeLU])
    assert [site.curve for site in patch_model(model, ACTIVATIONS).sites] == ["telu"] * 3
    (loss, gradients), (plain_loss, plain_gradients) = loss_and_gradients(model), loss_and_gradients(plain)
    assert loss == plain_loss
    torch.testing.assert_close(gradients, plain_gradients, rtol=1e-3, atol=1e-5)


def test_a_module_is_a_function_too() -> None:
    register_activation("telu", TeLU())
    assert curve_of(TeLU()) is curves.CURVES["telu"]


def test_a_registered_curve_is_a_module_like_the_others() -> None:
    module = InvertedActivation(registered_curve())
    assert torch.equal(module(normal(10)), telu(normal(10)))
    assert pickle.loads(pickle.dumps(module.curve)).name == "telu"


def test_parameters_of_its_own_are_refused() -> None:
    with pytest.raises(UnsuitableActivation, match=r"scaled cannot be inverted: Scaled has parameters of its own"):
        register_activation("scaled", Scaled())


def test_an_error_above_the_bound_is_refused() -> None:
    with pytest.raises(UnsuitableActivation, match=r"telu cannot be inverted: the best fit .* more than 1e-09"):
        register_activation("telu", telu, max_error=1e-9)


def test_a_forward_that_is_inaccurate_in_half_precision_is_refused() -> None:
    def squareplus(x: Tensor) -> Tensor:
        return (x + torch.sqrt(x * x + 4)) / 2  # cancels on the left, and overflows

    with pytest.raises(UnsuitableActivation, match=r"in torch.bfloat16 its derivative would be off by up to 1, more"):
        register_activation("squareplus", squareplus)


def test_a_forward_that_changes_the_dtype_is_refused() -> None:
    with pytest.raises(UnsuitableActivation, match=r"for an input of torch.bfloat16, its result is torch.float32"):
        register_activation("wide", lambda x: telu(x.float() if x.dtype == torch.bfloat16 else x))


@pytest.mark.parametrize("name", ["silu", "telu"])
def test_a_name_that_is_taken_is_refused(name: str) -> None:
    def steep(x: Tensor) -> Tensor:
        return F.silu(2 * x)

    register_activation("telu", telu)
    with pytest.raises(ValueError, match=f"there is a curve named '{name}' already"):
        register_activation(name, steep)
    assert curve_of(steep) is None


def test_nothing_is_registered_when_something_is_refused() -> None:
    for bad in (nn.SiLU, nn.ReLU, nn.GELU, F.gelu):
        with pytest.raises(ValueError, match="already"):
            register_activation("telu", telu, used_as=[TeLU, bad])
    assert curve_of(telu) is curve_of(TeLU()) is None
    assert "telu" not in curves.CURVES
    assert register_activation("telu", telu, used_as=[TeLU]) is not None


def test_is_fitted_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        registered = register_activation("telu", lambda x: telu(x))  # which no other test has had fitted
    assert registered is not None
    assert all(error.rms < 0.004 for error in registered.errors.values())


GROWTH = """
import ctypes, gc, torch, hf_invact
from pathlib import Path

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is freed between what is kept: how much that is changes from run to run
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

sizes, results = [], []
for index in range(5):
    telu = lambda x, steepness=1 + index / 99: x * torch.tanh(torch.exp(steepness * x))
    results.append(hf_invact.register_activation(f"telu{index}", telu))
    sizes.append(resident())
print(sizes[-1] - sizes[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads /proc, and has glibc free its memory")
def test_registering_keeps_no_memory() -> None:
    printed = subprocess.run([sys.executable, "-c", GROWTH], check=True, capture_output=True, text=True).stdout
    assert int(printed) < 2**20  # of three activations; measuring them allocates and frees a hundred times as much
