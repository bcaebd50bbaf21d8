"""Norms as functions and as modules, against those of PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_invact import functional, nn
from hf_invact.ops import NormSaving
from tests.helpers import DTYPES, dtype_name, normal, output_and_gradients, record_saved
from tests.ops.norms import each_norm_saving

SHAPE = (4, 24)
MODULES: list[tuple[type, dict[str, Any]]] = [
    (torch.nn.RMSNorm, {"normalized_shape": 24}),
    (torch.nn.RMSNorm, {"normalized_shape": SHAPE, "eps": 1e-3}),
    (torch.nn.RMSNorm, {"normalized_shape": SHAPE, "elementwise_affine": False}),
    (torch.nn.LayerNorm, {"normalized_shape": 24}),
    (torch.nn.LayerNorm, {"normalized_shape": SHAPE, "eps": 1e-3}),
    (torch.nn.LayerNorm, {"normalized_shape": SHAPE, "bias": False}),
    (torch.nn.LayerNorm, {"normalized_shape": SHAPE, "elementwise_affine": False}),
]
each_module = pytest.mark.parametrize(
    ("kind", "options"), MODULES, ids=[f"{kind.__name__}-{options}" for kind, options in MODULES]
)


def build(kind: type, options: dict[str, Any], **more: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """PyTorch's module and ours, with the same parameters."""
    native: torch.nn.Module = kind(**options)
    for seed, parameter in enumerate(native.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    ours: torch.nn.Module = getattr(nn, kind.__name__)(**options, **more)
    ours.load_state_dict(native.state_dict())
    return native, ours


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@each_norm_saving
@each_module
def test_as_pytorchs_module(kind: type, options: dict[str, Any], saving: NormSaving, dtype: torch.dtype) -> None:
    native, ours = (module.to(dtype) for module in build(kind, options, saving=saving))
    assert isinstance(ours, kind)
    assert repr(ours).endswith(f", saving={saving!r}, backend='auto')")
    assert repr(ours).startswith(repr(native).removesuffix(")"))
    x, dy = (normal(5, *SHAPE, dtype=dtype, seed=seed) for seed in (3, 4))
    results = []
    for module in (native, ours):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(dy)
        results.append([y.detach(), leaf.grad, *(each.grad for each in module.parameters())])
    assert torch.equal(results[0][0], results[1][0])
    eps = torch.finfo(dtype).eps
    for found, expected in zip(results[1], results[0], strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=0, atol=(16 * eps + 1e-6) * scale)


@each_module
def test_keeps_its_output(kind: type, options: dict[str, Any]) -> None:
    _, module = build(kind, options)
    x = normal(5, *SHAPE).requires_grad_()
    with record_saved() as saved:
        y = module(x)
    pointers = {each.untyped_storage().data_ptr() for each in saved}
    assert y.untyped_storage().data_ptr() in pointers
    assert x.untyped_storage().data_ptr() not in pointers


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@each_module
def test_copies(kind: type, options: dict[str, Any], duplicate: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    _, module = build(kind, options, saving="input", backend="eager")
    twin = duplicate(module)
    assert repr(twin) == repr(module)
    assert torch.equal(twin(normal(5, *SHAPE)), module(normal(5, *SHAPE)))


@pytest.mark.parametrize("module", [nn.RMSNorm, nn.LayerNorm])
def test_unknown_names_are_refused_at_once(module: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        module(3, backend="fast")
    with pytest.raises(ValueError, match="saving must be one of 'output', 'input', got 'inputs'"):
        module(3, saving="inputs")


@pytest.mark.parametrize("function", [functional.layer_norm, functional.rms_norm])
def test_an_unknown_backend_is_refused_with_the_known_ones(function: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'fast'.*auto, eager"):
        function(torch.ones(3), (3,), backend="fast")


@each_norm_saving
def test_functions_have_the_arguments_of_pytorchs(saving: NormSaving) -> None:
    x, weight, bias = normal(5, *SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    cases: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = [
        (
            lambda *t: functional.rms_norm(t[0], SHAPE, t[1], 1e-3, saving=saving),
            lambda *t: F.rms_norm(t[0], SHAPE, t[1], 1e-3),
            [x, weight],
        ),
        (lambda *t: functional.rms_norm(t[0], SHAPE, saving=saving), lambda *t: F.rms_norm(t[0], SHAPE), [x]),
        (
            lambda *t: functional.layer_norm(t[0], [24], eps=1e-3, saving=saving),
            lambda *t: F.layer_norm(t[0], [24], eps=1e-3),
            [x],
        ),
        (
            lambda *t: functional.layer_norm(t[0], SHAPE, *t[1:], saving=saving),
            lambda *t: F.layer_norm(t[0], SHAPE, *t[1:]),
            [x, weight, bias],
        ),
    ]
    for ours, native, tensors in cases:
        found, expected = (output_and_gradients(function, *tensors) for function in (ours, native))
        assert torch.equal(found[0], expected[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(), (7,), (5, 4, 24, 1)], ids=str)
def test_pytorch_raises_its_own_errors(shape: tuple[int, ...]) -> None:
    x = normal(5, *SHAPE).requires_grad_()
    for ours, native in ((functional.layer_norm, F.layer_norm), (functional.rms_norm, F.rms_norm)):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            native(x, list(shape))
        with pytest.raises(type(expected.value)) as found:
            ours(x, shape)
        assert str(found.value) == str(expected.value)
