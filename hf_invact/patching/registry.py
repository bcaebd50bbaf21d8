"""The blocks that can be patched: a module class, and the attribute in which it holds its activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .activations import full_name


@dataclass(frozen=True)
class Block:
    """A kind of block.

    Attributes:
        cls: full name of the module class. Subclasses count too.
        activation: attribute of the block that is called with one tensor and whose result feeds the next layer.
    """

    cls: str
    activation: str


_BLOCKS: dict[str, Block] = {
    block.cls: block
    for block in (
        Block("transformers.models.gpt2.modeling_gpt2.GPT2MLP", "act"),
        Block("transformers.models.bert.modeling_bert.BertIntermediate", "intermediate_act_fn"),
        Block("transformers.models.mistral.modeling_mistral.MistralMLP", "act_fn"),
        Block("transformers.models.llama.modeling_llama.LlamaMLP", "act_fn"),
    )
}


def register_block(block: type[nn.Module], activation: str) -> None:
    """Have `patch_model` patch a block of your own.

    Args:
        block: the module class. Subclasses count too.
        activation: attribute of the block that holds its activation.

    Raises:
        ValueError: the class is registered already with another attribute.

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
    new = Block(full_name(block), activation)
    if _BLOCKS.setdefault(new.cls, new) != new:
        raise ValueError(f"{new.cls} is registered already, with its activation in {_BLOCKS[new.cls].activation!r}")


def registered_blocks() -> tuple[Block, ...]:
    """All blocks that are known."""
    return tuple(_BLOCKS.values())


def find_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, Block]]:
    """The known blocks of a model: qualified name, module, kind."""
    for name, module in model.named_modules():
        for cls in type(module).__mro__:
            if block := _BLOCKS.get(full_name(cls)):
                yield name, module, block
                break
