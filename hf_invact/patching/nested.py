"""Values in nested tuples, lists and dictionaries, such as arguments and outputs of modules.

`torch.utils._pytree` does this as well, but each of its calls leaves a cycle that holds the values until garbage is
collected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import torch


def leaves(value: Any) -> Iterator[Any]:
    """The values that are not collections themselves.

    >>> list(leaves((1, {"a": [2, None]})))
    [1, 2, None]
    """
    if isinstance(value, dict):
        value = value.values()
    elif not _is_sequence(value):
        yield value
        return
    for each in value:
        yield from leaves(each)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same collections, with the result of a function for each leaf, in the order of `leaves`.

    >>> mapped(str, (1, {"a": [2, None]}))
    ('1', {'a': ['2', 'None']})
    """
    if isinstance(value, dict):
        items = {key: mapped(function, each) for key, each in value.items()}
        return type(value)(**items) if is_dataclass(value) else type(value)(items)  # outputs of Transformers are both
    if _is_sequence(value):
        parts = [mapped(function, each) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return function(value)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and not isinstance(value, torch.Size)
