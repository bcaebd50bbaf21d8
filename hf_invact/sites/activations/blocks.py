"""Finds the blocks of a model that hold an activation: by their class if it is registered, else by their structure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from ..kind import original_of
from ..names import full_name
from ..replaced import replaced_by_copies
from .recognize import inverse_of, reason_to_leave


@dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
        cls: full name of the module class. Subclasses count too.
        activation: attribute of the block that is called with one tensor.
        is_gated: whether its result is multiplied with another projection. Counts only where the block cannot be
            probed, and only in subclasses that do not override `forward`.
    """

    cls: str
    activation: str
    is_gated: bool = False


_BLOCKS: dict[str, Block] = {
    block.cls: block
    for block in (
        Block("transformers.models.gpt2.modeling_gpt2.GPT2MLP", "act"),
        Block("transformers.models.bert.modeling_bert.BertIntermediate", "intermediate_act_fn"),
        Block("transformers.models.mistral.modeling_mistral.MistralMLP", "act_fn", is_gated=True),
        Block("transformers.models.llama.modeling_llama.LlamaMLP", "act_fn", is_gated=True),
    )
}


def register_block(block: type[nn.Module], activation: str, *, is_gated: bool = False) -> None:
    """Make `patch_model` patch a block of your own even if it cannot be probed (see `InvActConfig.plan`).

    Args:
        block: the module class. Subclasses count too.
        activation: attribute of the block that holds its activation.
        is_gated: whether the activation's result is multiplied with another projection.

    Raises:
        ValueError: the class is registered already otherwise.

    >>> import torch, hf_invact
    >>> class FeedForward(torch.nn.Module):
    ...     def __init__(self) -> None:
    ...         super().__init__()
    ...         self.up, self.act, self.down = torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)
    ...     def forward(self, x):
    ...         return self.down(self.act(self.up(x)))
    >>> hf_invact.register_block(FeedForward, activation="act")
    >>> hf_invact.patch_model(FeedForward()).patched
    1
    """
    new = Block(full_name(block), activation, is_gated)
    known = _BLOCKS.setdefault(new.cls, new)
    if known != new:
        gated = "gated" if known.is_gated else "not gated"
        raise ValueError(f"{new.cls} is registered already, with its activation in {known.activation!r}, {gated}")


def registered_blocks() -> tuple[Block, ...]:
    """All registered classes."""
    return tuple(_BLOCKS.values())


def find_activations(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Block | None]]:
    """The activations that can be inverted, in model order; in registered blocks also unknown ones.

    Returns:
        For each: the qualified name of the block, the block, where it holds the activation, and what its class is
        registered as; None if it is found by its structure.

    Those that nothing calls are left out: see `replaced_by_copies`.
    """
    replaced = replaced_by_copies(model)
    for name, module in model.named_modules():
        if module in replaced or is_activation(module):
            continue
        if (block := _registered(type(module))) is not None:
            yield name, module, block.activation, block
            continue
        for attribute, value in {**vars(module), **module._modules}.items():
            if callable(value) and inverse_of(original_of(value)) is not None:
                yield name, module, attribute, None


def _registered(cls: type[nn.Module]) -> Block | None:
    """What a class is registered as. A subclass with its own forward is not assumed to be gated."""
    registered = next((base for base in cls.__mro__ if full_name(base) in _BLOCKS), None)
    if registered is None:
        return None
    block = _BLOCKS[full_name(registered)]
    return block if cls.forward is getattr(registered, "forward", None) else replace(block, is_gated=False)


def is_activation(module: nn.Module) -> bool:
    """Whether a module is itself a known activation."""
    original = original_of(module)
    return inverse_of(original) is not None or reason_to_leave(original) is not None
