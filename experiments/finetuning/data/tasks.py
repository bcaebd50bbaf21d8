"""Turns records into what a Trainer needs: token sequences, labels, a collator and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from ...common.errors import ConfigError
from .labels import number_labels
from .metrics import ClassificationMetrics
from .tokenizer import ensure_padding

if TYPE_CHECKING:
    from ..arguments import DataArguments

Batch = dict[str, list[Any]]
Encode = Callable[[Batch], Batch]

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class PreparedTask:
    """One task on one data set, tokenized.

    Attributes:
        auto_class: the Transformers class that builds the model.
        model_config_updates: values of the model's config that the data determines.
        primary_metric: the main score, as `Trainer.evaluate` names it.
    """

    train_dataset: datasets.Dataset
    eval_dataset: datasets.Dataset
    data_collator: Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]
    auto_class: Any
    primary_metric: str = "eval_loss"
    greater_is_better: bool = False
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None
    preprocess_logits_for_metrics: Callable[[Any, torch.Tensor], torch.Tensor] | None = None
    model_config_updates: dict[str, Any] = field(default_factory=dict)


def prepare(data: DataArguments, records: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase) -> PreparedTask:
    """Prepare the records of `load_records` for the task of `data`.

    Language modelling concatenates the texts and cuts them into blocks of `max_seq_length` tokens; the last, shorter
    block is dropped. With a `text_template`, causal language modelling makes one sequence of each record instead.
    A tokenizer without a padding token gets one if sequences differ in length.

    Raises:
        ConfigError: the tokenizer does not suit the task, the texts do not fill one block, or training and validation
            data do not have the same classes.
    """
    if not 2 <= data.max_seq_length <= tokenizer.model_max_length:
        raise ConfigError(
            f"max_seq_length={data.max_seq_length} must lie between 2 and {tokenizer.model_max_length}, "
            "the largest length of this tokenizer's model"
        )
    if data.task == "sequence-classification":
        return _classification(data, records, tokenizer)
    if data.task == "masked-lm":
        return _masked_lm(data, records, tokenizer)
    if data.text_template is not None:
        return _instruction(data, records, tokenizer)
    return _causal_lm(data, records, tokenizer)


def _causal_lm(data: DataArguments, records: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase) -> PreparedTask:
    def encode(batch: Batch) -> Batch:
        return {"input_ids": tokenizer(batch[data.text_column], verbose=False)["input_ids"]}

    train, validation = (
        datasets.Dataset.from_dict({"input_ids": blocks, "labels": blocks}) for blocks in _blocks(data, records, encode)
    )
    return PreparedTask(train, validation, default_data_collator, AutoModelForCausalLM)


def _instruction(
    data: DataArguments, records: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> PreparedTask:
    """Each record is one sequence, followed by the end-of-text token. All of its tokens count in the loss."""
    ensure_padding(tokenizer)
    end = tokenizer.eos_token or ""

    def encode(batch: Batch) -> Batch:
        texts = [text + end for text in batch[data.text_column]]
        tokens = tokenizer(texts, truncation=True, max_length=data.max_seq_length)
        # Without token types, for which GPT-2 would add an embedding.
        return {name: tokens[name] for name in ("input_ids", "attention_mask")} | {"labels": tokens["input_ids"]}

    train, validation = _sequences(data, records, encode)
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    return PreparedTask(train, validation, collator, AutoModelForCausalLM)


def _masked_lm(data: DataArguments, records: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase) -> PreparedTask:
    if tokenizer.mask_token is None:
        raise ConfigError(
            "masked-lm needs a tokenizer with a mask token, but this one has none; "
            "choose an encoder such as bert, or the task causal-lm"
        )

    def encode(batch: Batch) -> Batch:
        # Empty lines would become sequences of only special tokens.
        texts = [text for text in batch[data.text_column] if text.strip()]
        return {"input_ids": tokenizer(texts, verbose=False)["input_ids"] if texts else []}

    train, validation = (datasets.Dataset.from_dict({"input_ids": blocks}) for blocks in _blocks(data, records, encode))
    # Without its own seed, the collator uses torch's generator, which the Trainer seeds.
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=data.mlm_probability)
    return PreparedTask(train, validation, collator, AutoModelForMaskedLM)


def _classification(
    data: DataArguments, records: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase
) -> PreparedTask:
    ensure_padding(tokenizer)
    columns = [column for column in (data.text_column, data.text_pair_column) if column is not None]

    def encode(batch: Batch) -> Batch:
        texts = [batch[column] for column in columns]
        return dict(tokenizer(*texts, truncation=True, max_length=data.max_seq_length))

    numbered, names = number_labels(records, data.label_column)
    train, validation = _sequences(data, numbered, encode)
    return PreparedTask(
        train,
        validation,
        DataCollatorWithPadding(tokenizer),
        AutoModelForSequenceClassification,
        primary_metric="eval_accuracy",
        greater_is_better=True,
        compute_metrics=ClassificationMetrics(len(names)),
        preprocess_logits_for_metrics=_most_likely,
        model_config_updates={
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "pad_token_id": tokenizer.pad_token_id,  # decoders classify by the last token before the padding
        },
    )


def _sequences(data: DataArguments, records: datasets.DatasetDict, encode: Encode) -> list[datasets.Dataset]:
    """Training and validation records, each encoded as one sequence. `labels` is kept if it exists."""
    encoded = []
    for split in SPLITS:
        dataset = _limit(records[split], split, data)
        unused = [column for column in dataset.column_names if column != "labels"]
        encoded.append(dataset.map(encode, batched=True, remove_columns=unused, desc=f"Tokenizing ({split})"))
    return encoded


def _blocks(data: DataArguments, records: datasets.DatasetDict, encode: Encode) -> list[np.ndarray]:
    """Training and validation tokens, concatenated and cut: arrays of shape (sequences, max_seq_length)."""
    length = data.max_seq_length
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    splits = []
    for split in SPLITS:
        dataset = records[split]
        tokens = dataset.map(
            encode,
            batched=True,
            remove_columns=dataset.column_names,
            features=features,
            desc=f"Tokenizing ({split})",
        )
        ids = tokens.with_format("arrow")[:]["input_ids"].combine_chunks().flatten().to_numpy()
        count = len(ids) // length
        if count == 0:
            raise ConfigError(
                f"the {split} texts hold {len(ids)} tokens, fewer than one sequence of max_seq_length={length}; "
                "give more text, or lower max_seq_length"
            )
        splits.append(ids[: count * length].reshape(count, length)[: _max_samples(data, split)])
    return splits


def _limit(dataset: datasets.Dataset, split: str, data: DataArguments) -> datasets.Dataset:
    limit = _max_samples(data, split)
    return dataset if limit is None else dataset.select(range(min(limit, dataset.num_rows)))


def _max_samples(data: DataArguments, split: str) -> int | None:
    name = "max_train_samples" if split == "train" else "max_eval_samples"
    limit: int | None = getattr(data, name)
    if limit is not None and limit < 1:
        raise ConfigError(f"{name} must be at least 1, got {limit}; leave it out to use all of them")
    return limit


def _most_likely(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """Class numbers, shape (records,). They take far less memory during evaluation than the logits."""
    if isinstance(logits, tuple):  # some models also return hidden states or a cache
        logits = logits[0]
    return logits.argmax(dim=-1)
