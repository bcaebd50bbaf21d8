"""Loads the records of a run from the standard library, local files or the hub, and checks them before any training."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError

from ...common.errors import ConfigError, first_line
from . import corpus

if TYPE_CHECKING:
    from ..arguments import DataArguments

BUILT_IN = {"stdlib-prose": corpus.prose, "stdlib-docstrings": corpus.docstrings}
BUILDERS = {".txt": "text", ".csv": "csv", ".json": "json", ".jsonl": "json"}
OFFLINE_CONFIGS = tuple(f"configs/demo/{name}.yaml" for name in ("gpt2", "bert", "mistral", "llama"))


def load_records(data: DataArguments, seed: int) -> datasets.DatasetDict:
    """Load the splits `train` and `validation`, with the columns that the run needs under the names that `data` gives.

    A `text_template` fills the column `text_column`. If there is no validation split, `validation_fraction` of the
    training records is held out, chosen by `seed`; the others keep their order. Local files are held in memory, and
    nothing is left in the cache.

    Raises:
        ConfigError: a file, data set, split or column is missing, empty or of the wrong kind, or the hub cannot be
            reached.
    """
    if data.validation_file is not None and data.train_file is None:
        raise ConfigError(
            f"validation_file={data.validation_file!r} can only be used with train_file, not with "
            f"dataset_name={data.dataset_name!r}; leave one of them out"
        )
    if data.dataset_config_name is not None and data.dataset_name is None:
        raise ConfigError(
            f"dataset_config_name={data.dataset_config_name!r} can only be used with dataset_name, not with "
            f"train_file={data.train_file!r}; leave it out"
        )
    if data.dataset_name is not None:
        raw = _from_name(data.dataset_name, data.dataset_config_name)
    else:
        raw = _from_files({"train": data.train_file, "validation": data.validation_file})
    records = datasets.DatasetDict({split: _select(dataset, split, data) for split, dataset in raw.items()})
    return records if "validation" in records else _hold_out(records["train"], data.validation_fraction, seed)


def training_texts(data: DataArguments, records: datasets.DatasetDict) -> Iterator[str]:
    """All texts of the training split, including both sentences of a pair, to train a tokenizer on."""
    for column in (data.text_column, data.text_pair_column):
        if column is not None:
            yield from records["train"][column]


def describe_records(records: datasets.DatasetDict) -> corpus.CorpusInfo:
    """Identifies what `load_records` returned, whichever seed chose the records that are held out."""
    return corpus.describe(chain.from_iterable(records.values()))


def _from_files(files: dict[str, str | None]) -> dict[str, datasets.Dataset]:
    # Each file is loaded separately, so that our own checks find a difference between them, and name it.
    paths = {split: _checked_path(split, file) for split, file in files.items() if file is not None}
    return {split: _load_file(path) for split, path in paths.items()}


def _checked_path(split: str, file: str) -> Path:
    path = Path(file).expanduser()
    if path.suffix.lower() not in BUILDERS:
        raise ConfigError(f"{split}_file={file!r} has an unknown ending; known are {', '.join(BUILDERS)}")
    if not path.is_file():
        raise ConfigError(f"{split}_file={file!r} does not exist or is not a file (looked in {Path.cwd()})")
    if path.stat().st_size == 0:
        raise ConfigError(f"{split}_file={file!r} is empty")
    return path


def _load_file(path: Path) -> datasets.Dataset:
    builder = BUILDERS[path.suffix.lower()]
    options = {"keep_linebreaks": True} if builder == "text" else {}  # the joined lines are the file's text
    with tempfile.TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except (DatasetsError, ValueError) as error:
            reason = error.__cause__ or error
            raise ConfigError(f"{path} cannot be read as {path.suffix[1:]}: {first_line(reason)}") from error


def _from_name(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    if name in BUILT_IN:
        if config is not None:
            raise ConfigError(
                f"the built-in data set {name!r} has no configurations, got dataset_config_name={config!r}"
            )
        return {"train": datasets.Dataset.from_list(BUILT_IN[name]())}
    splits = {str(split): dataset for split, dataset in _load_hub(name, config).items()}
    if "train" not in splits:
        raise ConfigError(f"data set {name!r} has no split 'train'; it has {', '.join(splits)}")
    # MNLI's is called validation_matched.
    validation = next((split for split in splits if split.startswith("validation")), None)
    return {"train": splits["train"]} | ({"validation": splits[validation]} if validation else {})


def _load_hub(name: str, config: str | None) -> datasets.DatasetDict:
    known = f"These need no network: {', '.join(OFFLINE_CONFIGS)}."
    try:
        return datasets.load_dataset(name, config)
    except FileNotFoundError as error:
        raise ConfigError(
            f"data set {name!r} was not found, neither as a local folder, nor in the cache, nor on the hub "
            f"({first_line(error)}); built in are {', '.join(BUILT_IN)}. {known}"
        ) from error
    except (OSError, HTTPError) as error:
        raise ConfigError(
            f"data set {name!r} is not in the cache and the hub could not be reached "
            f"({type(error).__name__}: {first_line(error)}). {known}"
        ) from error
    except (DatasetsError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"data set {name!r} with dataset_config_name={config!r} cannot be loaded: {str(error).strip()}"
        ) from error


def _select(dataset: datasets.Dataset, split: str, data: DataArguments) -> datasets.Dataset:
    """Keep only the needed columns, with the template filled in, and check them."""
    if dataset.num_rows == 0:
        raise ConfigError(f"the {split} data holds no records")
    columns = {"text_pair_column": data.text_pair_column}
    if data.task == "sequence-classification":
        columns["label_column"] = data.label_column
    if data.text_template is None:
        columns["text_column"] = data.text_column
    for argument, column in columns.items():
        if column is not None:
            _require_column(dataset, split, f"{argument}={column!r}", column)
    if data.text_template is not None:
        dataset = _fill_template(dataset, split, data.text_template, data.text_column)
    texts = [column for column in (data.text_column, data.text_pair_column) if column is not None]
    for column in texts:
        _require_text(dataset, split, column)
    return dataset.select_columns(texts + [name for key, name in columns.items() if key == "label_column" and name])


def _fill_template(dataset: datasets.Dataset, split: str, template: str, column: str) -> datasets.Dataset:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"text_template={template!r} is invalid: {error}; write {{{{ for a literal brace") from error
    if not fields:
        raise ConfigError(f"text_template={template!r} names no column; write a column's name in braces, as {{text}}")
    for field in fields:
        _require_column(dataset, split, f"text_template names {{{field}}}", field)

    def fill(record: dict[str, object]) -> dict[str, str]:
        # An optional column (the input of an instruction) is often null.
        return {column: template.format(**{field: "" if record[field] is None else record[field] for field in fields})}

    return dataset.map(fill, desc=f"Filling the text template ({split})")


def _require_column(dataset: datasets.Dataset, split: str, wanted: str, column: str) -> None:
    if column not in dataset.column_names:
        raise ConfigError(
            f"{wanted}, but the {split} data has no such column; it has {', '.join(dataset.column_names)}"
        )


def _require_text(dataset: datasets.Dataset, split: str, column: str) -> None:
    dtype = getattr(dataset.features[column], "dtype", None)
    if dtype not in ("string", "large_string"):
        raise ConfigError(f"column {column!r} of the {split} data must hold text, it holds {dataset.features[column]}")
    empty = dataset.data.column(column).null_count
    if empty:
        raise ConfigError(
            f"column {column!r} of the {split} data holds no text in {empty} of {dataset.num_rows} records"
        )


def _hold_out(dataset: datasets.Dataset, fraction: float, seed: int) -> datasets.DatasetDict:
    rows = dataset.num_rows
    if rows < 2:
        raise ConfigError(
            "one record cannot be split into training and validation data; give more records, or validation_file"
        )
    held_out = min(max(1, round(rows * fraction)), rows - 1)
    order = np.random.default_rng(seed).permutation(rows)
    parts = {"train": order[held_out:], "validation": order[:held_out]}
    return datasets.DatasetDict({split: dataset.select(np.sort(part)) for split, part in parts.items()})
