"""Finds the modules that are recomputed during the backward pass."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..patching.weights.sharding import plain_name


def checkpointed_modules(model: nn.Module) -> tuple[str, ...]:
    """Names, as in reports, of the layers that Transformers or PyTorch's checkpoint wrapper recompute.

    Layers that a script checkpoints in its own code are not found.
    """
    return tuple(dict.fromkeys(plain_name(name) for named in model.named_modules() for name in _recomputed(*named)))


def _recomputed(name: str, module: nn.Module) -> Iterator[str]:
    from transformers.modeling_layers import GradientCheckpointingLayer  # heavy, so not at import

    if hasattr(module, "_checkpoint_wrapped_module"):  # of torch.distributed.algorithms._checkpoint
        yield name
    if getattr(module, "gradient_checkpointing", False) is not True:
        return
    if isinstance(module, GradientCheckpointingLayer):
        yield name
    elif not any(isinstance(each, GradientCheckpointingLayer) for each in module.modules()):
        for child_name, child in module.named_children():  # a stack that checkpoints its layers itself
            if isinstance(child, nn.ModuleList):
                yield from (f"{name}.{child_name}.{index}".lstrip(".") for index in range(len(child)))
