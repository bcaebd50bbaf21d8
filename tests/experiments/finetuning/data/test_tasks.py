"""Token sequences, labels and collators of each task, for all forms of data."""

import dataclasses

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    EvalPrediction,
    PreTrainedTokenizerFast,
)

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import DataArguments
from experiments.finetuning.data.tasks import PreparedTask, prepare
from experiments.finetuning.data.tokenizer import train_tokenizer

LINES = [" = Title = \n", " \n", "", " The game was released in two versions , and it was praised . \n"] * 20
PAIRS = [
    {"sentence1": f"He said {n} words.", "sentence2": "He " + "often " * n + "left.", "label": n % 2} for n in range(8)
]
INSTRUCTIONS = [{"text": f"### Instruction:\nAdd {n}.\n### Response:\n" + "9" * n} for n in range(1, 9)]


@pytest.fixture(scope="module")
def gpt2() -> PreTrainedTokenizerFast:
    return train_tokenizer(LINES, "gpt2", 400, 64)


@pytest.fixture(scope="module")
def bert() -> PreTrainedTokenizerFast:
    return train_tokenizer(LINES + [record["sentence2"] for record in PAIRS], "bert", 400, 64)


def records(train: list[dict], validation: list[dict] | None = None) -> datasets.DatasetDict:
    splits = {"train": train, "validation": train if validation is None else validation}
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


def lines(texts: list[str]) -> datasets.DatasetDict:
    return records([{"text": text} for text in texts])


def language(task: str, **kwargs) -> DataArguments:
    return DataArguments(task=task, dataset_name="stdlib-prose", **{"max_seq_length": 16} | kwargs)


def pairs(**kwargs) -> DataArguments:
    columns = {"text_column": "sentence1", "text_pair_column": "sentence2"}
    return DataArguments(task="sequence-classification", dataset_name="x", **{"max_seq_length": 16} | columns | kwargs)


def batch(task: PreparedTask, count: int) -> dict[str, torch.Tensor]:
    return task.data_collator([task.train_dataset[index] for index in range(count)])


def test_causal_blocks_are_the_text_without_its_end(gpt2):
    task = prepare(language("causal-lm"), lines(LINES), gpt2)
    everything = gpt2("".join(LINES))["input_ids"]
    ids = np.concatenate(task.train_dataset["input_ids"])
    assert len(everything) % 16 != 0
    assert ids.tolist() == everything[: len(everything) // 16 * 16]
    assert task.train_dataset["labels"][:] == task.train_dataset["input_ids"][:]
    assert batch(task, 3)["input_ids"].shape == (3, 16)
    assert batch(task, 3)["input_ids"].dtype == torch.int64
    assert task.auto_class is AutoModelForCausalLM
    assert (task.primary_metric, task.greater_is_better, task.compute_metrics) == ("eval_loss", False, None)


def test_masked_blocks_leave_out_empty_lines(bert):
    task = prepare(language("masked-lm"), lines(LINES), bert)
    ids = np.concatenate(task.train_dataset["input_ids"]).tolist()
    expected = [token for text in LINES if text.strip() for token in bert(text)["input_ids"]]
    assert ids == expected[: len(expected) // 16 * 16]
    assert task.auto_class is AutoModelForMaskedLM


def test_empty_lines_alone_are_no_masked_data(bert):
    with pytest.raises(ConfigError, match="the train texts hold 0 tokens"):
        prepare(language("masked-lm"), lines(["", " \n"] * 600), bert)


def test_masking_follows_the_global_seed_and_probability(bert):
    task = prepare(language("masked-lm", mlm_probability=0.4), lines(LINES), bert)
    rows = [task.train_dataset[0]] * 200

    def masked(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return task.data_collator(rows)

    first, again, other = masked(1), masked(1), masked(2)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"], other["labels"])
    special = torch.isin(torch.tensor(rows[0]["input_ids"]), torch.tensor(bert.all_special_ids))
    chosen = first["labels"] != -100
    assert not chosen[:, special].any()
    assert chosen[:, ~special].float().mean() == pytest.approx(0.4, abs=0.05)


def test_instructions_are_one_sequence_each(gpt2):
    task = prepare(language("causal-lm", text_template="{text}", max_seq_length=40), records(INSTRUCTIONS), gpt2)
    assert len(task.train_dataset) == len(INSTRUCTIONS)
    expected = [(gpt2(record["text"])["input_ids"] + [gpt2.eos_token_id])[:40] for record in INSTRUCTIONS]
    assert task.train_dataset["input_ids"][:] == expected
    assert {len(ids) == 40 for ids in expected} == {True, False}  # some are cut, some are not


def test_padding_does_not_count_but_the_end_does(gpt2):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=gpt2.backend_tokenizer, eos_token=gpt2.eos_token, model_max_length=64
    )  # as GPT-2's own: without a padding token
    data = language("causal-lm", text_template="{text}", max_seq_length=64)
    made = batch(prepare(data, records(INSTRUCTIONS), tokenizer), 8)
    padding = made["attention_mask"] == 0
    assert padding.any()
    assert (made["labels"][padding] == -100).all()
    assert torch.equal(made["labels"][~padding], made["input_ids"][~padding])
    ends = (made["labels"] == tokenizer.eos_token_id).sum(dim=1)
    assert ends.tolist() == [1] * 8
    assert set(made) == {"input_ids", "attention_mask", "labels"}


def test_pairs_become_classes(bert):
    task = prepare(pairs(), records(PAIRS, PAIRS[:4]), bert)
    made = batch(task, 8)
    assert made["input_ids"].shape == (8, 16)
    assert made["labels"].tolist() == [0, 1] * 4
    assert made["token_type_ids"].max() == 1
    first = bert(PAIRS[0]["sentence1"], PAIRS[0]["sentence2"], truncation=True, max_length=16)["input_ids"]
    assert made["input_ids"][0, : len(first)].tolist() == first
    assert len(task.eval_dataset) == 4
    assert task.auto_class is AutoModelForSequenceClassification
    assert task.model_config_updates == {
        "num_labels": 2,
        "id2label": {0: "0", 1: "1"},
        "label2id": {"0": 0, "1": 1},
        "pad_token_id": bert.pad_token_id,
    }


def test_config_updates_build_a_model_that_trains(bert):
    task = prepare(pairs(), records(PAIRS), bert)
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(bert), **tiny, **task.model_config_updates)
    output = task.auto_class.from_config(config)(**batch(task, 8))
    assert output.logits.shape == (8, 2)
    assert output.loss.isfinite()
    numbers = task.preprocess_logits_for_metrics((output.logits,), batch(task, 8)["labels"])
    assert torch.equal(numbers, output.logits.argmax(dim=-1))
    scores = task.compute_metrics(EvalPrediction(numbers.numpy(), batch(task, 8)["labels"].numpy()))
    assert task.primary_metric.removeprefix("eval_") in scores
    assert set(scores) == {"accuracy", "f1", "f1_macro"}


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        pytest.param(["no", "yes", "maybe"], ["maybe", "no", "yes"], [1, 2, 0], id="names"),
        pytest.param([10, 9, 2], ["2", "9", "10"], [2, 1, 0], id="integers in numeric order"),
        pytest.param([True, False, True], ["False", "True"], [1, 0, 1], id="booleans"),
    ],
)
def test_labels_of_any_form(bert, labels, names, numbers):
    rows = [{"text": f"word {label}", "label": label} for label in labels]
    task = prepare(pairs(text_column="text", text_pair_column=None), records(rows), bert)
    assert list(task.model_config_updates["id2label"].values()) == names
    assert task.train_dataset["labels"][:] == numbers


def test_names_of_a_class_label_feature_are_kept(bert):
    named = records(PAIRS)
    feature = datasets.ClassLabel(names=["not_equivalent", "equivalent", "unused"])
    named = datasets.DatasetDict({split: rows.cast_column("label", feature) for split, rows in named.items()})
    task = prepare(pairs(), named, bert)
    assert task.model_config_updates["label2id"] == {"not_equivalent": 0, "equivalent": 1, "unused": 2}
    assert task.train_dataset["labels"][:] == [0, 1] * 4


def test_integers_in_one_file_match_text_in_the_other(bert):
    texts = [{**row, "label": str(row["label"])} for row in PAIRS]
    task = prepare(pairs(), records(PAIRS, texts), bert)
    assert task.eval_dataset["labels"][:] == [0, 1] * 4


@pytest.mark.parametrize("task_name", ["causal-lm", "masked-lm", "instruction", "sequence-classification"])
def test_sample_limits(task_name, gpt2, bert):
    limits = {"max_train_samples": 3, "max_eval_samples": 2}
    if task_name == "sequence-classification":
        task = prepare(pairs(**limits), records(PAIRS), bert)
    elif task_name == "instruction":
        task = prepare(language("causal-lm", text_template="{text}", **limits), records(INSTRUCTIONS), gpt2)
    else:
        task = prepare(language(task_name, **limits), lines(LINES), gpt2 if task_name == "causal-lm" else bert)
    assert (len(task.train_dataset), len(task.eval_dataset)) == (3, 2)


def test_limits_above_the_data_take_all(bert):
    task = prepare(pairs(max_train_samples=100), records(PAIRS), bert)
    assert len(task.train_dataset) == len(PAIRS)


def with_labels(labels: list) -> list[dict]:
    return [{**PAIRS[index], "label": label} for index, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        pytest.param(["a", "b"], ["a", "c"], "'label' of the validation data holds 'c'.*'a', 'b'", id="unseen label"),
        pytest.param([0.5, 1.0], [0.5], "must hold classes", id="scores"),
        pytest.param([1, None, 0], [1], "no label in 1 of 3", id="missing label"),
        pytest.param(["a", "a"], ["a"], "at least two classes", id="one class"),
    ],
)
def test_labels_that_are_no_classes(bert, train, validation, message):
    with pytest.raises(ConfigError, match=message):
        prepare(pairs(), records(with_labels(train), with_labels(validation)), bert)


def test_labels_that_the_hub_marks_as_missing(bert):
    feature = datasets.ClassLabel(names=["no", "yes"])
    hidden = datasets.Dataset.from_list(with_labels([0, -1])).cast_column("label", feature)
    with pytest.raises(ConfigError, match="validation data holds no label in 1 of 2"):
        prepare(pairs(), datasets.DatasetDict({"train": hidden.select([0]), "validation": hidden}), bert)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"max_seq_length": 65}, "max_seq_length=65 must lie between 2 and 64", id="longer than the model"),
        pytest.param({"max_seq_length": 0}, "max_seq_length=0 must lie", id="no length"),
        pytest.param({"max_train_samples": 0}, "max_train_samples must be at least 1", id="no samples"),
        pytest.param({"task": "masked-lm"}, "needs a tokenizer with a mask token", id="masked-lm with a decoder"),
    ],
)
def test_arguments_that_cannot_work(gpt2, arguments, message):
    with pytest.raises(ConfigError, match=message):
        prepare(dataclasses.replace(language("causal-lm"), **arguments), lines(LINES), gpt2)


def test_too_little_text_says_how_much_there_is(gpt2):
    with pytest.raises(ConfigError, match=r"the train texts hold [1-9] tokens, fewer than .* max_seq_length=16"):
        prepare(language("causal-lm"), lines(["Title", "game"]), gpt2)
