"""Which curve an activation object computes: every spelling of Transformers, and a user's own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN, ClippedGELUActivation

from hf_invact import PatchingError, patch_model, register_activation
from hf_invact.curves import (
    GELU,
    GELU_TANH,
    HARDSWISH,
    LAPLACE,
    MISH,
    QUICK_GELU,
    RELU2,
    RELU6,
    SILU,
    SQRTSOFTPLUS,
    Curve,
    clipped_gelu,
    elu,
    leaky_relu,
    selu,
    softplus,
)
from hf_invact.sites.activations.recognize import curve_of, inverse_of, reason_to_leave, supported_activations
from tests.helpers import assert_gradient_within, dtype_name, error_bar, normal, output_and_gradient, rounded_rms
from tests.models import ACTIVATIONS, tiny_model
from tests.versions import since_transformers


@dataclass(frozen=True)
class Spelling:
    """A name of Transformers for an activation.

    `is_exact` means that Transformers calls the same function as we do: results are bit-identical in any dtype.
    """

    name: str
    curve: Curve
    is_exact: bool

    def __str__(self) -> str:
        return self.name


SPELLINGS = [
    Spelling("gelu", GELU, is_exact=True),
    Spelling("gelu_python", GELU, is_exact=False),
    Spelling("gelu_new", GELU_TANH, is_exact=False),
    Spelling("gelu_fast", GELU_TANH, is_exact=False),
    Spelling("gelu_accurate", GELU_TANH, is_exact=False),
    Spelling("gelu_pytorch_tanh", GELU_TANH, is_exact=True),
    Spelling("gelu_python_tanh", GELU_TANH, is_exact=False),
    Spelling("silu", SILU, is_exact=True),
    Spelling("swish", SILU, is_exact=True),
    Spelling("quick_gelu", QUICK_GELU, is_exact=False),
    Spelling("gelu_10", clipped_gelu(-10.0, 10.0), is_exact=True),
    Spelling("mish", MISH, is_exact=True),
    Spelling("hardswish", HARDSWISH, is_exact=True),
    Spelling("laplace", LAPLACE, is_exact=False),
    Spelling("leaky_relu", leaky_relu(), is_exact=True),
    Spelling("relu2", RELU2, is_exact=True),
    Spelling("relu6", RELU6, is_exact=True),
    Spelling("sqrtsoftplus", SQRTSOFTPLUS, is_exact=False),
]
_NEW = {"hardswish": since_transformers("5.4", "the name"), "sqrtsoftplus": since_transformers("5.8", "the name")}
each_spelling = pytest.mark.parametrize(
    "spelling", [pytest.param(each, marks=_NEW.get(each.name, ()), id=each.name) for each in SPELLINGS]
)
each_block = pytest.mark.parametrize("name", ["gpt2", "bert", "llama"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)


@each_spelling
@each_block
def test_every_spelling_is_recognised_from_the_installed_object(name: str, spelling: Spelling) -> None:
    model = tiny_model(name, activation=spelling.name, num_hidden_layers=1)
    setattr(model.config, "activation_function" if name == "gpt2" else "hidden_act", "relu")
    sites = patch_model(model, ACTIVATIONS).sites
    assert len(sites) == (2 if name == "bert" else 1)  # BERT's prediction head has one too
    for site in sites:
        assert site.curve == spelling.curve.name
        assert model.get_submodule(site.name).curve is spelling.curve


@each_dtype
@each_spelling
def test_result_and_gradient_are_those_of_the_object(spelling: Spelling, dtype: torch.dtype) -> None:
    original = ACT2FN[spelling.name]
    model = tiny_model("bert", activation=spelling.name, num_hidden_layers=1)
    site, _ = patch_model(model, ACTIVATIONS).sites
    x = normal(64, 33, dtype=dtype)

    y, dx = output_and_gradient(model.get_submodule(site.name), x)
    # The same numbers and the same formula, in float64.
    exact_y, exact_dx = output_and_gradient(original, x.double())

    if spelling.is_exact:
        assert torch.equal(y, original(x))
    torch.testing.assert_close(y.double(), exact_y, rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert_gradient_within(error_bar(spelling.curve, dtype), dx, torch.ones_like(dx), exact_dx)
    assert (dx.double() - exact_dx).square().mean().sqrt() < rounded_rms(error_bar(spelling.curve, dtype), dtype)


@each_spelling
def test_without_gradients_the_object_itself_answers(spelling: Spelling) -> None:
    original = ACT2FN[spelling.name]
    model = tiny_model("llama", activation=spelling.name, num_hidden_layers=1)
    (site,) = patch_model(model, ACTIVATIONS).sites
    patched = model.get_submodule(site.name)
    x = normal(64, 33, dtype=torch.bfloat16)
    assert torch.equal(patched(x), original(x))
    with torch.no_grad():
        assert torch.equal(patched(x.clone().requires_grad_()), original(x))


class OwnGELU(nn.GELU):
    """A subclass, which may compute anything."""


def own_gelu(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x)


@pytest.mark.parametrize(
    ("activation", "curve"),
    [
        pytest.param(nn.GELU(), GELU, id="GELU()"),
        pytest.param(nn.GELU("tanh"), GELU_TANH, id="GELU(tanh)"),
        pytest.param(nn.SiLU(), SILU, id="SiLU()"),
        pytest.param(F.gelu, GELU, id="F.gelu"),
        pytest.param(F.silu, SILU, id="F.silu"),
        pytest.param(functools.partial(F.gelu), GELU, id="partial(F.gelu)"),
        pytest.param(functools.partial(F.gelu, approximate="none"), GELU, id="partial(F.gelu, none)"),
        pytest.param(functools.partial(F.gelu, approximate="tanh"), GELU_TANH, id="partial(F.gelu, tanh)"),
        pytest.param(functools.partial(F.gelu, torch.ones(1)), None, id="partial(F.gelu, tensor)"),
        pytest.param(functools.partial(F.softplus, beta=2.0), None, id="partial(F.softplus)"),
        pytest.param(OwnGELU(), None, id="subclass of GELU"),
        pytest.param(own_gelu, None, id="own function"),
        pytest.param(nn.Mish(), MISH, id="Mish()"),
        pytest.param(F.mish, MISH, id="F.mish"),
        pytest.param(nn.LeakyReLU(), leaky_relu(), id="LeakyReLU()"),
        pytest.param(nn.LeakyReLU(0.2), leaky_relu(0.2), id="LeakyReLU(0.2)"),
        pytest.param(nn.LeakyReLU(-0.2), None, id="LeakyReLU(-0.2)"),
        pytest.param(nn.LeakyReLU(0.0), None, id="LeakyReLU(0)"),
        pytest.param(nn.ELU(0.5), elu(0.5), id="ELU(0.5)"),
        pytest.param(nn.ELU(-0.5), None, id="ELU(-0.5)"),
        pytest.param(nn.SELU(), selu(), id="SELU()"),
        pytest.param(nn.Softplus(), softplus(), id="Softplus()"),
        pytest.param(nn.Softplus(2.0, 10.0), softplus(2.0, 10.0), id="Softplus(2, 10)"),
        pytest.param(nn.Softplus(-1.0), None, id="Softplus(-1)"),
        pytest.param(ClippedGELUActivation(-0.1, 3.0), clipped_gelu(-0.1, 3.0), id="ClippedGELU(-0.1, 3)"),
        pytest.param("gelu", None, id="a name"),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_curve_of_an_object(activation: object, curve: Curve | None) -> None:
    assert curve_of(activation) is curve


@pytest.mark.parametrize("name", ACT2FN)
def test_every_name_of_transformers_is_inverted_or_left_alone_for_a_reason(name: str) -> None:
    curve, reason = inverse_of(ACT2FN[name]), reason_to_leave(ACT2FN[name])
    assert (curve is None) != (reason is None), (
        f"the installed Transformers offers the activation {name!r}, a {type(ACT2FN[name]).__name__}, which "
        f"{'is not known here' if curve is None else 'is both inverted and left alone'}: give its class a curve, or a "
        "reason to leave it alone, in hf_invact/sites/activations/recognize.py, and run scripts/render_activations.py"
    )


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "linear"])
def test_an_activation_that_is_left_alone_has_a_reason(name: str) -> None:
    assert reason_to_leave(ACT2FN[name])
    assert inverse_of(ACT2FN[name]) is None


@each_spelling
def test_inverting_any_other_activation_gains(spelling: Spelling) -> None:
    assert reason_to_leave(ACT2FN[spelling.name]) is None


@pytest.mark.parametrize("activation", [OwnGELU(), own_gelu], ids=["class", "function"])
def test_an_activation_of_ones_own_is_patched_once_it_is_registered(activation: Any) -> None:
    model = tiny_model("bert", activation=activation)
    with pytest.raises(PatchingError, match="register_activation"):
        patch_model(model, ACTIVATIONS)
    register_activation("gelu", used_as=[OwnGELU if isinstance(activation, nn.Module) else activation])
    assert [site.curve for site in patch_model(model, ACTIVATIONS).sites] == ["gelu"] * 3


def test_a_registered_activation_is_listed_as_supported() -> None:
    assert "own_gelu" not in supported_activations()
    register_activation("gelu", used_as=[own_gelu])
    register_activation("gelu", used_as=[OwnGELU])
    assert {"OwnGELU", "own_gelu", "GELU", "SiLU", "gelu", "silu", "NewGELUActivation"} <= set(supported_activations())


def test_registering_twice_alike_is_harmless() -> None:
    register_activation("gelu", used_as=[own_gelu])
    register_activation("gelu", used_as=[own_gelu])
    assert curve_of(own_gelu) is GELU


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (nn.GELU, "an instance's own parameters"),
        (nn.LeakyReLU, "an instance's own"),
        (nn.PReLU, "an instance's own"),
        (nn.ReLU, "left alone: its"),
    ],
    ids=["GELU", "LeakyReLU", "PReLU", "ReLU"],
)
def test_registering_what_is_known_otherwise_is_refused(cls: type[nn.Module], why: str) -> None:
    with pytest.raises(ValueError, match=rf"{cls.__name__} is known already.* {why}"):
        register_activation("silu", used_as=[cls])


@pytest.mark.parametrize("activation", [OwnGELU, own_gelu, nn.SiLU, F.silu, F.gelu], ids=lambda known: known.__name__)
def test_registering_twice_differently_is_refused(activation: Any) -> None:
    if activation in (OwnGELU, own_gelu):
        register_activation("gelu", used_as=[activation])
    with pytest.raises(ValueError, match=r"registered already, as (gelu|silu)"):
        register_activation("quick_gelu", used_as=[activation])
    assert curve_of(activation() if isinstance(activation, type) else activation) in (GELU, SILU)


def test_an_unknown_curve_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown curve 'erf'; known: gelu, gelu_tanh, silu, quick_gelu"):
        register_activation("erf", used_as=[own_gelu])
