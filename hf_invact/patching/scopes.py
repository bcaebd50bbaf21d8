"""Finds what can be run by itself and holds both an activation and what consumes it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from . import slot
from .probe import TOKENS, NoProbeError, Scope, reason, undisturbed

LEVELS = 3  # the block itself, and two around it
WIDTHS = 4
WITHOUT_ATTENTION = ("feed_forward_chunk", "ff_chunk")  # methods of the layers of BERT, of Longformer, and their kin


def find_scope(model: nn.Module, name: str, attribute: str) -> Scope:
    """The smallest module around a block that runs on hidden states alone and uses the activation.

    Args:
        model: the whole model, for its width.
        name: qualified name of the block.
        attribute: where the block holds the activation.

    Raises:
        NoProbeError: there is none, or its weights are sharded or missing.
    """
    block = model.get_submodule(name)
    failures: list[str] = []
    for module in _around(model, name):
        for scope in _attempts(model, module):
            try:
                output, results = _try(scope, block, attribute)
            except Exception as error:  # whatever a foreign forward raises: reported as the reason
                failures.append(reason(module, error))
                continue
            if not results:
                failures.insert(0, f"{type(module).__name__} does not call it")
                continue
            if _uses(output, results[-1]):
                return scope
            failures.insert(0, f"what uses the result of {type(module).__name__} cannot be run by itself")
            break
    raise NoProbeError(failures[0] if failures else "the size of its hidden states is not known")


def _around(model: nn.Module, name: str) -> Iterator[nn.Module]:
    for _ in range(LEVELS):
        module = model.get_submodule(name)
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            yield module
        if not name:
            return
        name = name.rpartition(".")[0]


def _attempts(model: nn.Module, module: nn.Module) -> Iterator[Scope]:
    weights = [weight for weight in module.parameters() if weight.is_floating_point()]
    weights = weights or [weight for weight in model.parameters() if weight.is_floating_point()]
    if not weights:
        return
    _require_whole(module)
    dtype, device = weights[0].dtype, weights[0].device
    for width in _widths(model, module):
        for name in WITHOUT_ATTENTION:
            if hasattr(module, name):
                yield Scope(module, getattr(module, name), width, dtype, device)
        yield Scope(module, module.forward, width, dtype, device)
        yield Scope(module, module.forward, width, dtype, device, has_mask=True)
    for width in dict.fromkeys(each.in_channels for each in module.modules() if isinstance(each, nn.Conv2d)):
        yield Scope(module, module.forward, width, dtype, device, is_image=True)


def _require_whole(module: nn.Module) -> None:
    for weight in module.parameters():
        is_part = hasattr(weight, "device_mesh") or hasattr(weight, "ds_id")  # of a DTensor, of DeepSpeed's ZeRO-3
        if is_part or weight.numel() == 0 or weight.is_meta:
            raise NoProbeError("its weights are sharded or missing")


def _widths(model: nn.Module, module: nn.Module) -> list[int]:
    """Candidates for the size of hidden states."""
    config = getattr(model, "config", None)
    found = [getattr(config, "hidden_size", None)]
    for each in module.modules():
        found += [getattr(each, "in_features", None), getattr(each, "nx", None)]
    return list(dict.fromkeys(width for width in found if isinstance(width, int)))[:WIDTHS]


def _try(scope: Scope, block: nn.Module, attribute: str) -> tuple[Tensor, list[Tensor]]:
    results: list[Tensor] = []
    with slot.recorded(block, attribute, results), undisturbed(scope.module, scope.device):
        return scope.run(scope.hidden_states(TOKENS)), results


def _uses(output: Tensor, result: Tensor) -> bool:
    """Whether more is returned than the activation's result, a view or a product of it: else it is used elsewhere."""
    function = output.grad_fn
    if function is None or output.untyped_storage()._cdata == result.untyped_storage()._cdata:
        return False
    is_product = type(function).__name__ == "MulBackward0"
    return not (is_product and any(before is result.grad_fn for before, _ in function.next_functions))
