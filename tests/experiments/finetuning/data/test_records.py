"""Records from the standard library, local files and the hub, and the errors of each."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import DataArguments
from experiments.finetuning.data.records import describe_records, load_records, training_texts

WIKITEXT = " \n = Valkyria = \n \n Senjō no Valkyria 3 is a role @-@ playing game . \n It was released in 2011 . \n" * 4
PAIRS = [
    {"sentence1": f"He said {n}, then left.", "sentence2": f"He left after {n}.", "label": n % 2, "idx": n}
    for n in range(10)
]
INSTRUCTIONS = [{"instruction": f"Add {n}.", "input": None if n % 2 else "1", "output": str(n)} for n in range(10)]
TEMPLATE = "### Instruction:\n{instruction}\n{input}\n### Response:\n{output}"

UNREACHABLE = """
import time
from experiments.finetuning.arguments import DataArguments
from experiments.finetuning.data.records import load_records
from experiments.common.errors import ConfigError
start = time.monotonic()
try:
    load_records(DataArguments(task="causal-lm", dataset_name="wikitext", dataset_config_name="wikitext-2-raw-v1"), 0)
except ConfigError as error:
    print(time.monotonic() - start, error)
"""


def write(path: Path, records: list[dict]) -> str:
    if path.suffix == ".csv":
        datasets.Dataset.from_list(records).to_pandas().to_csv(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def causal(**kwargs) -> DataArguments:
    return DataArguments(task="causal-lm", **kwargs)


def pairs(**kwargs) -> DataArguments:
    return DataArguments(
        task="sequence-classification", text_column="sentence1", text_pair_column="sentence2", **kwargs
    )


@pytest.mark.parametrize(
    ("name", "columns"),
    [("stdlib-prose", ["text"]), ("stdlib-docstrings", ["text", "label"])],
    ids=lambda value: str(value),
)
def test_built_in_data(name, columns):
    task = "causal-lm" if columns == ["text"] else "sequence-classification"
    records = load_records(DataArguments(task=task, dataset_name=name), seed=0)
    assert {split: dataset.column_names for split, dataset in records.items()} == {
        "train": columns,
        "validation": columns,
    }
    total = records["train"].num_rows + records["validation"].num_rows
    assert records["validation"].num_rows == round(0.05 * total)


def test_lines_of_a_text_file_join_to_the_file(tmp_path):
    (tmp_path / "wiki.txt").write_text(WIKITEXT)
    (tmp_path / "valid.txt").write_text("one\ntwo")
    records = load_records(
        causal(train_file=str(tmp_path / "wiki.txt"), validation_file=str(tmp_path / "valid.txt")), seed=0
    )
    assert "".join(records["train"]["text"]) == WIKITEXT
    assert records["validation"]["text"][:] == ["one\n", "two"]


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl"])
def test_sentence_pairs_from_each_kind_of_file(tmp_path, ending):
    data = pairs(train_file=write(tmp_path / f"mrpc.{ending}", PAIRS), validation_fraction=0.2)
    records = load_records(data, seed=0)
    assert records["train"].column_names == ["sentence1", "sentence2", "label"]
    rows = [*records["train"], *records["validation"]]
    expected = [{key: record[key] for key in ("sentence1", "sentence2", "label")} for record in PAIRS]
    assert sorted(rows, key=str) == sorted(expected, key=str)
    assert set(training_texts(data, records)) == {
        row[column] for row in records["train"] for column in ("sentence1", "sentence2")
    }


def test_template_builds_the_text(tmp_path):
    data = causal(train_file=write(tmp_path / "alpaca.jsonl", INSTRUCTIONS), text_template=TEMPLATE)
    records = load_records(data, seed=0)
    texts = {text for split in records.values() for text in split["text"]}
    assert "### Instruction:\nAdd 2.\n1\n### Response:\n2" in texts
    assert "### Instruction:\nAdd 3.\n\n### Response:\n3" in texts  # a null column is empty text
    assert records["train"].column_names == ["text"]


def test_hold_out_follows_the_seed_and_keeps_the_order(tmp_path):
    (tmp_path / "lines.txt").write_text("".join(f"{n:03}\n" for n in range(100)))
    data = causal(train_file=str(tmp_path / "lines.txt"), validation_fraction=0.1)
    first, again, other = (load_records(data, seed) for seed in (1, 1, 2))
    assert first["validation"]["text"][:] == again["validation"]["text"][:] != other["validation"]["text"][:]
    assert len(first["validation"]) == 10
    assert len(first["train"]) == 90
    assert set(first["validation"]["text"]).isdisjoint(first["train"]["text"])
    assert first["train"]["text"][:] == sorted(first["train"]["text"])
    assert describe_records(first) == describe_records(other)


def test_local_files_leave_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = causal(train_file=write(tmp_path / "alpaca.jsonl", INSTRUCTIONS), text_template=TEMPLATE)
    records = load_records(data, seed=0)
    assert not (tmp_path / "cache").exists()
    assert not any(dataset.cache_files for dataset in records.values())


def test_data_set_with_splits_of_its_own(tmp_path, monkeypatch):
    # A folder is loaded as a hub name is; MNLI calls its split validation_matched.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mnli").mkdir()
    write(tmp_path / "mnli" / "train.jsonl", PAIRS)
    write(tmp_path / "mnli" / "matched.jsonl", PAIRS[:3])
    (tmp_path / "mnli" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: train.jsonl}\n  - {split: validation_matched, path: matched.jsonl}\n---\n"
    )
    records = load_records(pairs(dataset_name=str(tmp_path / "mnli")), seed=0)
    assert {split: len(dataset) for split, dataset in records.items()} == {"train": 10, "validation": 3}
    with pytest.raises(ConfigError, match=r"dataset_config_name='nope'.*\n?.*default"):
        load_records(pairs(dataset_name=str(tmp_path / "mnli"), dataset_config_name="nope"), seed=0)


def files(folder: Path) -> dict[str, str]:
    """Files with one fault each, and one good file."""
    (folder / "empty.csv").touch()
    (folder / "header.csv").write_text("text,label\n")
    (folder / "broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (folder / "gap.csv").write_text("text,label\none,1\n,0\n")
    (folder / "numbers.csv").write_text("text,label\n1,1\n2,0\n")
    (folder / "single.csv").write_text("text,label\none,1\n")
    (folder / "table.xlsx").write_text("text")
    write(folder / "good.jsonl", PAIRS)
    return {path.name.split(".")[0]: str(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"train_file": "{missing}"}, r"train_file='.*missing\.csv' does not exist", id="missing file"),
        pytest.param(
            {"train_file": "{good}", "validation_file": "{missing}"},
            r"validation_file='.*missing\.csv'",
            id="missing val",
        ),
        pytest.param({"train_file": "{table}"}, r"unknown ending; known are \.txt, \.csv, \.json", id="unknown ending"),
        pytest.param({"train_file": "{empty}"}, r"empty\.csv' is empty", id="empty file"),
        pytest.param({"train_file": "{header}"}, r"header\.csv cannot be read as csv", id="header only"),
        pytest.param({"train_file": "{broken}"}, r"broken\.jsonl cannot be read as jsonl", id="broken json"),
        pytest.param({"train_file": "{single}"}, "one record cannot be split", id="single record"),
        pytest.param({"train_file": "{gap}"}, "'text' of the train data holds no text in 1 of 2", id="null text"),
        pytest.param({"train_file": "{numbers}"}, "'text' of the train data must hold text", id="numbers as text"),
        pytest.param(
            {"train_file": "{good}"},
            "text_column='text', but .* it has sentence1, sentence2, label, idx",
            id="unknown text column",
        ),
        pytest.param(
            {"train_file": "{good}", "text_column": "sentence1", "text_pair_column": "pair"},
            "text_pair_column='pair', but .* sentence1, sentence2",
            id="unknown pair column",
        ),
        pytest.param(
            {
                "task": "sequence-classification",
                "train_file": "{good}",
                "text_column": "sentence1",
                "label_column": "class",
            },
            "label_column='class', but .* sentence1, sentence2, label",
            id="unknown label column",
        ),
        pytest.param(
            {"train_file": "{good}", "text_template": "{{output}}"},
            r"names \{output\}, but .* sentence1, sentence2",
            id="template with unknown column",
        ),
        pytest.param({"train_file": "{good}", "text_template": "x {{idx"}, "is invalid", id="malformed template"),
        pytest.param({"train_file": "{good}", "text_template": "text"}, "names no column", id="constant template"),
        pytest.param(
            {"dataset_name": "stdlib-prose", "dataset_config_name": "x"}, "has no configurations", id="built-in config"
        ),
        pytest.param(
            {"dataset_name": "stdlib-prose", "validation_file": "{good}"},
            "can only be used with train_file",
            id="lone val",
        ),
        pytest.param(
            {"train_file": "{good}", "dataset_config_name": "x"},
            "can only be used with dataset_name",
            id="config of a file",
        ),
        pytest.param({"dataset_name": "./no/such/folder"}, "was not found.*stdlib-prose", id="missing folder"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, arguments, message):
    paths = files(tmp_path) | {"missing": str(tmp_path / "missing.csv")}
    arguments = {key: value.format(**paths) for key, value in arguments.items()}
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        load_records(DataArguments(**{"task": "causal-lm"} | arguments), seed=0)
    assert time.monotonic() - start < 1.0


def test_unreachable_hub_is_one_clear_line():
    # In its own process: huggingface_hub reads HF_HUB_OFFLINE only once.
    result = subprocess.run(
        [sys.executable, "-c", UNREACHABLE],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr
    seconds, message = result.stdout.split(" ", 1)
    assert float(seconds) < 3.0
    assert "'wikitext'" in message
    assert "the hub could not be reached" in message
    for name in ("gpt2", "bert", "mistral", "llama"):
        assert f"configs/demo/{name}.yaml" in message
    assert len(message.splitlines()) == 1
