"""What a Trainer's batches will be, as far as its arguments, its collator and its data set tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from typing import Any, NamedTuple, TypeGuard

from torch import optim
from torch.utils.data import Dataset

UNLIMITED = 1_000_000  # tokens; a tokenizer without a limit has more


class Length(NamedTuple):
    """The tokens of the longest sequence, and what says so."""

    tokens: int
    source: str


def longest_sequence(args: Any, others: Mapping[str, Any], given: int | None) -> Length | None:
    """How long the sequences of a training are at most; None where nothing tells.

    Args:
        args: the training arguments.
        others: the other arguments of the callback.
        given: by the user, who decides.
    """
    return next(_lengths(args, others, given), None)


def sequences_of_a_record(others: Mapping[str, Any]) -> int:
    """How many sequences a model gets for each record of a batch: TRL's preferences are two, chosen and rejected."""
    name = type(_collator(others)).__name__
    return 2 if "Preference" in name and "Unpaired" not in name else 1


def is_packed(args: Any) -> bool:
    """Whether sequences are put together to full ones, or one after another, as TRL's arguments say."""
    return bool(getattr(args, "packing", False) or getattr(args, "padding_free", False))


def _collator(others: Mapping[str, Any]) -> Any:
    collator = getattr(others.get("train_dataloader"), "collate_fn", None)
    return getattr(collator, "data_collator", collator)  # the Trainer wraps it where it removes columns


def _lengths(args: Any, others: Mapping[str, Any], given: int | None) -> Iterator[Length]:
    collator = _collator(others)
    tokenizer = others.get("processing_class") or getattr(collator, "tokenizer", None)
    if given is not None:
        yield Length(given, "given as seq_len")
    for name in ("max_length", "max_seq_length"):  # TRL's arguments
        if _is_limit(value := getattr(args, name, None)):
            yield Length(value, f"the training arguments' {name}")
    if _is_limit(value := getattr(collator, "max_length", None)):
        yield Length(value, "the collator's max_length")
    if (value := _longest_of(getattr(others.get("train_dataloader"), "dataset", None))) is not None:
        step = getattr(collator, "pad_to_multiple_of", None) or 1
        yield Length(-(-value // step) * step, "the longest of the training data")
    if _is_limit(value := getattr(tokenizer, "model_max_length", None)):
        yield Length(value, "the tokenizer's model_max_length")


def _is_limit(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < UNLIMITED


def _longest_of(data: Dataset[Any] | None) -> int | None:
    """The tokens of its longest example; None where it is a stream, or its examples have no tokens."""
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__") or not len(data):
        return None
    columns = getattr(data, "column_names", None)
    if columns is not None:  # a data set of the package datasets, whose other columns need not be read
        if "input_ids" not in columns:
            return None
        return max(map(len, data.with_format(None)["input_ids"]))
    first = data[0]
    if not isinstance(first, Mapping) or "input_ids" not in first:
        return None
    return max(len(data[index]["input_ids"]) for index in range(len(data)))


def planned_optimizer(optimizer: object) -> tuple[str, str]:
    """The name in `planning.OPTIMIZERS` of an optimizer, or of one with no less state; and a note on the latter."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's wrapper
    if isinstance(optimizer, optim.Adam):
        return ("adamw_fused" if optimizer.defaults.get("fused") else "adamw"), ""
    name = type(optimizer).__name__
    if isinstance(optimizer, optim.SGD):
        return "sgd", ""
    if name == "Adafactor":
        return "adafactor", ""
    return "adamw_fused", f"{name} is planned with the state of AdamW, two numbers for each trained weight"
