"""Turns off what modules do beside their forward computation, for the time of a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

from torch import nn

from ...sites import original_of

CHECKPOINT = "checkpoint"  # in names of attributes and functions
_TURNING_OFF = ("no_", "non_", "not_", "disable", "skip", "without")  # in names of flags that mean the opposite
# Arguments of `torch.utils.checkpoint.checkpoint` itself.
_OPTIONS = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
# Attributes in which PyTorch's wrappers for compiling, checkpointing and offloading hold the wrapped module.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
# Hooks of this package set the weight that a module uses: weight and spectral normalization, pruning.
_PART_OF_THE_FORWARD = "torch.nn.utils."


def isolate(modules: Iterable[nn.Module]) -> None:
    """Turn off, in each of these modules: hooks, checkpointing, `torch.compile`. `undisturbed` puts them back.

    No hook runs, be it of a module or of all, but those of `torch.nn.utils` that set a weight. Checkpointing hides what
    a layer keeps, and is told by names: flags and functions in attributes with "checkpoint" in their name, and a
    ``forward`` that is bound to a function with such a name.
    """
    of_classes: dict[type[nn.Module], dict[str, Any]] = {}
    for each in modules:
        cls = type(each)
        if cls not in of_classes:
            of_classes[cls] = {name: value for base in reversed(cls.__mro__) for name, value in _named(vars(base))}
        _turn_checkpointing_off(each, {**of_classes[cls], **dict(_named(vars(each)))})
        # PyTorch calls this instead of the function that runs hooks. Other instances are not affected.
        vars(each)["_compiled_call_impl"] = _what_to_call(each)


def modules_in(module: nn.Module) -> dict[str, nn.Module]:
    """A module and all modules in it by name, including originals that were replaced, and that may still be called."""
    found: dict[str, nn.Module] = {}
    for name, each in module.named_modules():
        found[name] = each
        original = original_of(each)
        if isinstance(original, nn.Module) and original is not each:
            found[f"{name} (replaced)"] = original
    return found


def tensors_in(modules: Mapping[str, nn.Module], kind: Literal["_parameters", "_buffers"]) -> Iterator[tuple[str, Any]]:
    """The parameters or buffers of these modules by name, each once."""
    seen: set[int] = set()
    for prefix, module in modules.items():
        for name, tensor in getattr(module, kind).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}".lstrip("."), tensor


def _named(space: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in space.items() if CHECKPOINT in name]


def _turn_checkpointing_off(module: nn.Module, named: Mapping[str, Any]) -> None:
    own = vars(module)
    for name, value in named.items():
        if value is True and not any(word in name for word in _TURNING_OFF):
            own[name] = False
        elif name in own and callable(value):
            own[name] = _call
    bound = own.get("forward")
    if CHECKPOINT in getattr(
        getattr(bound, "func", bound), "__name__", ""
    ):  # fairscale's, which calls the forward of the class
        del own["forward"]


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **{name: value for name, value in kwargs.items() if name not in _OPTIONS})


def _what_to_call(module: nn.Module) -> Callable[..., Any]:
    for wrapped in _WRAPPED:
        if wrapped in module._modules:
            return module.get_submodule(wrapped)
    hooks = [hook for hook in module._forward_pre_hooks.values() if is_part_of_the_forward(hook)]
    return partial(_forward_with, hooks, module)


def is_part_of_the_forward(hook: object) -> bool:
    """Whether a hook sets the weight that its module uses."""
    return any(base.__module__.startswith(_PART_OF_THE_FORWARD) for base in type(hook).__mro__)


def _forward_with(hooks: list[Callable[..., Any]], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Looks the forward up at each call: models may replace it while they run, as some versions of Transformers do."""
    for hook in hooks:
        hook(module, args)
    return module.forward(*args, **kwargs)
