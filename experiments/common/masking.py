"""Hides tokens, passwords and keys in what is written down: command lines, settings, names of data, messages."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import Any

MASK = "***"

# "tokenizer_name", "num_key_value_heads", "max_new_tokens" and "pad_token" are no secrets.
_LAST_WORD = re.compile(r".*token|.*key|keys|auth|authorization|bearer")
_ANY_WORD = re.compile(r".*(secret|password|passwd|passphrase|credential)s?|pwd")
_NO_SECRET = {"pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "special"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_USER_IN_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")
_PAIR = re.compile(r"([\w.-]+)=([^\s\"'&;,{}<>]+)")  # "?token=..." in a URL, "password=..." in a text
_PLACEHOLDER = re.compile(r"<[A-Z_]+>")  # what Transformers writes in place of a token, whether there is one or not


def is_secret(name: str) -> bool:
    """Whether a name says that its value is a secret.

    >>> is_secret("--hub_token"), is_secret("apiKey"), is_secret("tokenizer_name"), is_secret("num_key_value_heads")
    (True, True, False, False)
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if any(map(_ANY_WORD.fullmatch, words)):
        return True
    return bool(words) and bool(_LAST_WORD.fullmatch(words[-1])) and _NO_SECRET.isdisjoint(words[:-1])


def masked_command(arguments: Sequence[str]) -> str:
    """A command line as a shell takes it, with its secrets masked."""
    masked: list[str] = []
    is_value = False  # of an option whose value is a secret
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if is_value and not argument.startswith("--"):
            masked.append(MASK)
        elif argument.startswith("-") and sign and is_secret(name):
            masked.append(f"{name}={MASK}")
        elif argument.startswith("-") and sign:
            masked.append(f"{name}={masked_text(value)}")
        else:
            masked.append(masked_text(argument))
        is_value = argument.startswith("-") and not sign and is_secret(argument)
    return shlex.join(masked)


def masked_text(text: str) -> str:
    """A text (perhaps JSON) with its secrets masked: in URLs, tokens of the hub, and values beside a secret's name."""
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if isinstance(values, dict | list):
        hidden = masked(values)
        return text if hidden == values else json.dumps(hidden)
    text = _HUB_TOKEN.sub(MASK, _USER_IN_URL.sub(MASK, text))
    return _PAIR.sub(lambda pair: f"{pair[1]}={MASK}" if is_secret(pair[1]) else pair[0], text)


def masked(value: Any) -> Any:
    """JSON-compatible data with its secrets masked, at any depth."""
    if isinstance(value, dict):
        return {name: MASK if _is_secret_value(name, held) else masked(held) for name, held in value.items()}
    if isinstance(value, list | tuple):
        return [masked(held) for held in value]
    return masked_text(value) if isinstance(value, str) else value


def _is_secret_value(name: Any, value: Any) -> bool:
    is_text = isinstance(name, str) and isinstance(value, str) and not _PLACEHOLDER.fullmatch(value)
    return is_text and is_secret(name)
