"""Checks a model before it is searched for sites."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from ..sites.errors import PatchingError


def require_module(model: object) -> None:
    """Check that it is a module.

    Raises:
        PatchingError: it is not. The message says what came, and what to do.
    """
    if not isinstance(model, nn.Module):
        raise PatchingError(f"expected a model, an instance of torch.nn.Module, got {_what_came(model)}")


def require_weights(model: nn.Module) -> None:
    """Check that a model's modules can be listed and have their weights.

    Raises:
        PatchingError: they cannot, or have not. The message says which, and what to do.
    """
    for name, module in _modules(model):
        place, kind = name or "the model", type(module).__name__
        if type(module).__hash__ is None:
            raise PatchingError(
                f"{place}: PyTorch cannot list the modules of this model, since its {kind} cannot be hashed: it "
                "defines __eq__ alone. Add the line __hash__ = torch.nn.Module.__hash__ to that class"
            )
        present = (each for each in (*module._parameters.values(), *module._buffers.values()) if each is not None)
        if any(map(is_lazy, present)):
            raise PatchingError(
                f"{place}: this {kind} has no weights before its first forward pass. Run the model on a batch first, "
                "and patch it then"
            )


def _what_came(model: object) -> str:
    if isinstance(model, str):
        return (
            f"the string {model!r}. Load that model first, for example with "
            f"transformers.AutoModelForCausalLM.from_pretrained({model!r})"
        )
    if isinstance(model, type):
        return f"the class {model.__name__}. Make an instance of it first"
    return "None" if model is None else f"{type(model).__name__}"


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As `named_modules`, which only works for hashable modules."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = ((f"{name}.{key}".lstrip("."), child) for key, child in module._modules.items() if child is not None)
        waiting += reversed(list(children))
