"""How classes are named in tables and messages."""

from __future__ import annotations


def full_name(cls: type) -> str:
    """A class's module and qualified name.

    >>> from collections import OrderedDict
    >>> full_name(OrderedDict)
    'collections.OrderedDict'
    """
    return f"{cls.__module__}.{cls.__qualname__}"
