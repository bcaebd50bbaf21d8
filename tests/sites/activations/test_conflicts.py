"""Blocks or forward methods that others have replaced: refused, and told apart from harmless changes."""

from __future__ import annotations

import importlib
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from transformers import PreTrainedModel

import hf_invact
from hf_invact import InvActConfig, PatchingError, patch_model, unpatch_model
from hf_invact.sites.activations import install
from hf_invact.sites.forwards import replaced_forward
from tests.learned import two_blocks
from tests.models import ACTIVATIONS, batch, loss_and_gradients, tiny_model
from tests.versions import since_transformers

PACKAGE = Path(hf_invact.__file__).parent


def calls(model: PreTrainedModel) -> dict[str, int]:
    """How often a training step calls each patched activation."""
    counts: dict[str, int] = {}
    for name, block, attribute in install.patched(model):
        counts[name] = 0

        def note(module: nn.Module, args: Any, name: str = name) -> None:
            counts[name] += 1

        getattr(block, attribute).register_forward_pre_hook(note)
    model(**batch(model)).loss.backward()
    return counts


def forward(self: Any, x: Tensor) -> Tensor:
    result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
    return result


def replace(block: nn.Module) -> None:
    block.forward = types.MethodType(forward, block)


def replace_by_a_function(block: nn.Module) -> None:
    block.forward = lambda x: forward(block, x)


def wrap(block: nn.Module) -> None:
    add_hook_to_module(block, ModelHook())


@pytest.mark.parametrize(
    ("steps", "by"),
    [
        ([wrap], None),
        ([wrap, wrap], None),
        ([wrap, remove_hook_from_module], None),
        ([wrap, replace, remove_hook_from_module], None),
        ([replace], forward),
        ([replace_by_a_function], replace_by_a_function),
        ([replace, wrap], forward),
        ([replace, wrap, remove_hook_from_module], forward),
        ([wrap, replace], forward),
    ],
    ids=lambda value: " + ".join(step.__name__ for step in value) if isinstance(value, list) else "",
)
def test_accelerates_hooks_are_told_from_another_forward(
    steps: Sequence[Callable[[nn.Module], Any]], by: Callable[..., Any] | None
) -> None:
    model = tiny_model("llama")
    for step in steps:
        step(model.model.layers[1].mlp)
    if by is None:
        assert patch_model(model, ACTIVATIONS).patched == 2
        assert calls(model) == {"model.layers.0.mlp": 1, "model.layers.1.mlp": 1}
        return
    with pytest.raises(PatchingError) as error:
        patch_model(model, ACTIVATIONS)
    what = "model.layers.1.mlp: another library has replaced the forward of this LlamaMLP by "
    assert str(error.value).startswith(f"{what}{by.__module__}.{by.__qualname__}")
    for part in ("hf_invact", "'swiglu': False", "use_kernels=False", "InvActConfig(exclude=[...])"):
        assert part in str(error.value)
    assert list(install.patched(model)) == []
    assert patch_model(model, InvActConfig(sites=("activation",), exclude=("*.1.mlp",))).patched == 1


PARALLEL_STYLES = ("colwise", "rowwise", "moe_tp_experts", "moe_identity_expert", "all_reduce", "local_params")


@since_transformers("5.17", "tensor parallelism by a forward of its own")
@pytest.mark.parametrize("style", PARALLEL_STYLES)
def test_tensor_parallelism_of_transformers_is_told_from_another_forward(style: str) -> None:
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    if style not in ALL_PARALLEL_STYLES:
        pytest.skip(f"this version of Transformers has no {style}")
    layer = nn.Linear(4, 4)
    ALL_PARALLEL_STYLES[style].install_forward(layer, None)
    assert "forward" in vars(layer)
    assert replaced_forward(layer) is None
    wrap(layer)
    assert replaced_forward(layer) is None
    replaced = nn.Linear(4, 4)
    replace(replaced)
    ALL_PARALLEL_STYLES[style].install_forward(replaced, None)
    assert replaced_forward(replaced) == f"{forward.__module__}.forward"


def test_an_activation_whose_forward_was_replaced() -> None:
    model = tiny_model("llama")
    activation = model.model.layers[0].mlp.act_fn
    activation.forward = types.MethodType(nn.GELU.forward, activation)
    why = r"model.layers.0.mlp.act_fn: another library has replaced .* SiLUActivation by torch.*GELU.forward"
    with pytest.raises(PatchingError, match=why):
        patch_model(model, ACTIVATIONS)
    assert patch_model(model, InvActConfig(sites=("activation",), exclude=("*.0.mlp",))).patched == 1


def test_a_refusal_after_patching_leaves_what_was_patched() -> None:
    model = tiny_model("llama")
    patch_model(model, ACTIVATIONS)
    replace(model.model.layers[1].mlp)
    with pytest.raises(PatchingError, match=r"layers\.1\.mlp: another library"):
        patch_model(model, ACTIVATIONS)
    assert len(list(install.patched(model))) == 2
    unpatch_model(model)
    assert list(install.patched(model)) == []


@pytest.fixture
def ligers_classes(liger: None) -> None:
    """Llama's classes as Liger leaves them for models that are created afterwards."""
    from liger_kernel.transformers import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(fused_linear_cross_entropy=False)


@pytest.mark.usefixtures("ligers_classes")
def test_ligers_blocks_in_the_place_of_the_models_own() -> None:
    model = tiny_model("llama")
    why = r"model.layers.0.mlp: hf_invact finds .* in LigerSwiGLUMLP, which Liger .*=\{'swiglu': False"
    with pytest.raises(PatchingError, match=why):
        patch_model(model, ACTIVATIONS)
    both = nn.ModuleDict({"text": model, "other": tiny_model("bert")})
    with pytest.raises(PatchingError, match=r"text\.model\.layers\.0\.mlp: hf_invact finds no activation to invert"):
        patch_model(both, ACTIVATIONS)
    assert patch_model(both, InvActConfig(sites=("activation",), exclude=("text.*",))).patched == 3


@contextmanager
def copied(folder: Path, name: str) -> Iterator[Path]:
    """A copy of this package that can be imported by another name."""
    copy = folder / name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(folder))
    try:
        yield copy
    finally:
        sys.path.remove(str(folder))
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Another version of this package, whose operators have other names too."""
    with copied(tmp_path_factory.mktemp("fork"), "fork_of_it") as copy:
        operators = copy / "ops" / "operators" / "library.py"
        operators.write_text(operators.read_text().replace('NAMESPACE = "hf_invact"', 'NAMESPACE = "fork_of_it"'))
        yield importlib.import_module("fork_of_it")


FOREIGN: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: tiny_model("llama"),
    "bert": lambda: tiny_model("bert"),
    "a plain function": lambda: tiny_model("bert", activation=F.gelu),
    "prelu": lambda: two_blocks("prelu"),
    "found by its form": lambda: nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_model_that_another_copy_has_patched(name: str, fork: Any) -> None:
    model = FOREIGN[name]()
    fork.patch_model(model, fork.InvActConfig(sites=("activation",)))
    installed = {id(module) for module in model.modules()}
    with pytest.raises(PatchingError, match=r"another copy of hf_invact, imported as 'fork_of_it'. .*unpatch_model"):
        patch_model(model, ACTIVATIONS)
    assert {id(module) for module in model.modules()} == installed
    fork.unpatch_model(model)
    patch_model(model, ACTIVATIONS)
    with pytest.raises(fork.PatchingError, match="another copy of hf_invact, imported as 'hf_invact'"):
        fork.patch_model(model, fork.InvActConfig(sites=("activation",)))


def test_blocks_that_another_copy_has_patched_can_be_excluded(fork: Any) -> None:
    model = tiny_model("llama")
    fork.patch_model(model, fork.InvActConfig(sites=("activation",), include=("*.0.mlp",)))
    assert patch_model(model, InvActConfig(sites=("activation",), exclude=("*.0.mlp",))).patched == 1
    loss, gradients = loss_and_gradients(model)
    unpatch_model(model)
    fork.unpatch_model(model)
    plain_loss, plain = loss_and_gradients(model)
    assert loss == pytest.approx(plain_loss)
    assert all(F.mse_loss(gradients[key], plain[key]) < 1e-9 for key in plain)


def test_a_second_copy_with_the_same_operators_cannot_be_imported(tmp_path: Path) -> None:
    with copied(tmp_path, "copy_of_it") as copy, pytest.raises(ImportError) as error:
        importlib.import_module("copy_of_it.ops")
    message = str(error.value)
    assert message.startswith("PyTorch already has operators in the namespace 'hf_invact': another copy of this")
    assert "Import only one of the two" in message
    assert str(PACKAGE / "ops" / "operators" / "library.py") in message
    assert str(copy) in message
    patch_model(tiny_model("llama"), ACTIVATIONS)
