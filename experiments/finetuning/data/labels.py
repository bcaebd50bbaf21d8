"""Converts class labels of any form (names, numbers, a data set's `ClassLabel`) to class numbers."""

import datasets

from ...common.errors import ConfigError


def number_labels(records: datasets.DatasetDict, column: str) -> tuple[datasets.DatasetDict, list[str]]:
    """Replace `column` with `labels`, the number of each record's class. Returns the records and the class names.

    The classes are those of a `ClassLabel` feature, or else the sorted values of the training data.

    Raises:
        ConfigError: the labels are not classes, some are missing, there are fewer than two classes, or the validation
            data has a class that the training data does not have.
    """
    feature = records["train"].features[column]
    values = {split: _names(dataset, split, column) for split, dataset in records.items()}
    if isinstance(feature, datasets.ClassLabel):
        names = list(feature.names)
    else:
        names = [str(value) for value in sorted(set(records["train"][column]))]
    if len(names) < 2:
        raise ConfigError(f"classification needs at least two classes; column {column!r} holds only {names}")
    for split, found in values.items():
        if unknown := sorted(set(found) - set(names)):
            raise ConfigError(
                f"column {column!r} of the {split} data holds {', '.join(map(repr, unknown))}, which the training data "
                f"does not; its classes are {', '.join(map(repr, names))}. Remove those records, or train on some"
            )
    numbers = {name: number for number, name in enumerate(names)}
    return datasets.DatasetDict(
        {
            split: dataset.remove_columns(column).add_column("labels", [numbers[name] for name in values[split]])
            for split, dataset in records.items()
        }
    ), names


def _names(dataset: datasets.Dataset, split: str, column: str) -> list[str]:
    """The name of each record's class. "1" and 1 are the same class, since a file may hold either."""
    feature, values = dataset.features[column], dataset[column][:]
    dtype = getattr(feature, "dtype", "")
    if not dtype.startswith(("int", "uint", "string", "large_string", "bool")):
        raise ConfigError(f"column {column!r} of the {split} data must hold classes (names or integers), not {feature}")
    is_class_label = isinstance(feature, datasets.ClassLabel)
    # The hub marks missing labels with -1.
    missing = sum(value is None or (is_class_label and value < 0) for value in values)
    if missing:
        raise ConfigError(f"column {column!r} of the {split} data holds no label in {missing} of {len(values)} records")
    return [feature.int2str(value) if is_class_label else str(value) for value in values]
