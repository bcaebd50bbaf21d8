"""A model that is there already, with its weights, adapters and patches, made ready to be planned without memory."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, NamedTuple

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ...patching.errors import NoProbeError
from ...patching.weights.fake_copy import fake_copy
from ..errors import PlanningError
from ..fake.flash_attention import FLASH_ATTENTION, use_flash_attention
from .quantized import use_fake_kernels

_INPUT_GRADS = ("_require_grads_hook", "_require_grads_hooks")


class Facts(NamedTuple):
    """What is planned: the dtype of most weights, the implementation of attention, and the kind of device."""

    dtype: str = "bfloat16"
    attention: str = "sdpa"
    device: str = "cuda"


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """The model of Transformers that another one (PEFT's, DistributedDataParallel) is or wraps.

    Raises:
        PlanningError: there is none, or not one that holds the others.
    """
    for module in model.modules():  # the outermost comes first
        if isinstance(module, PreTrainedModel):
            if len([*model.parameters()]) > len([*module.parameters()]):
                break
            return module
    raise PlanningError(
        f"{type(model).__name__} is no model of Transformers, nor a wrapper around one; measure what it keeps with "
        "hf_invact.memory.SavedActivations"
    )


def facts_of(model: nn.Module) -> Facts:
    """With what a model would be trained as it is."""
    inner = transformers_model(model)
    sizes = Counter[str]()
    for weight in inner.parameters():
        if weight.is_floating_point():
            sizes[str(weight.dtype).partition(".")[2]] += weight.numel()
    device = next((weight.device.type for weight in inner.parameters() if not weight.is_meta), "cuda")
    dtype = sizes.most_common(1)[0][0] if sizes else Facts().dtype
    return Facts(dtype, inner.config._attn_implementation or "eager", device)


def has_input_grads(model: nn.Module) -> bool:
    """Whether the outputs of its embeddings require gradients, though these may be frozen."""
    return hasattr(transformers_model(model), _INPUT_GRADS[0])


def copy_without_memory(model: nn.Module, device: str) -> PreTrainedModel:
    """A copy on the active fake tensors, in training mode, without a cache. The model itself is left as it is.

    Args:
        device: where it is to run, "cuda" or "cpu".

    Raises:
        PlanningError: it cannot be copied.
    """
    inner = transformers_model(model)
    try:
        copied = fake_copy(inner)
    except NoProbeError as error:
        raise PlanningError(f"{type(inner).__name__} cannot be copied without weights: {error}") from error
    assert isinstance(copied, PreTrainedModel)
    _use_own_forwards(copied)
    configs: dict[int, Any] = {}
    for module in copied.modules():
        for name in _INPUT_GRADS:  # handles of the hooks of the model itself
            vars(module).pop(name, None)
        for name, value in vars(module).items():
            if isinstance(value, PretrainedConfig):
                vars(module)[name] = copy.deepcopy(value, configs)
    use_fake_kernels(copied, device, inner)
    copied.config.get_text_config().use_cache = copied.config.use_cache = False
    if copied.config._attn_implementation == FLASH_ATTENTION:
        use_flash_attention(copied)
    return copied if copied.training else copied.train()


def wrapped_forward(model: nn.Module) -> str:
    """What wraps a model's forward, which a copy cannot have: the full name; empty if nothing does."""
    inner = transformers_model(model)
    if (forward := vars(inner).get("forward")) is None or not _reaches_modules(forward):
        return ""
    function = getattr(forward, "__func__", forward)
    return f"{function.__globals__.get('__name__', '?')}.{function.__code__.co_name}"


def _use_own_forwards(copied: nn.Module) -> None:
    """Remove wrappers around a forward that would run the module itself, in place of its copy."""
    for module in copied.modules():
        if (forward := vars(module).get("forward")) is not None and _reaches_modules(forward):
            del vars(module)["forward"]


def _reaches_modules(forward: Any) -> bool:
    """Whether a function holds a module, or a method of one."""
    function = getattr(forward, "__func__", forward)
    held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return any(isinstance(getattr(each, "__self__", each), nn.Module) for each in held)
