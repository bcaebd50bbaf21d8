"""Every combination of the table, trained with the flag and without."""

from __future__ import annotations

from pathlib import Path

from tests.combinations.table import each_trained
from tests.combinations.training import Combination, check_saved_bytes, compare, record
from tests.compatibility import Matrix
from tests.models import each_model


@each_model
@each_trained
def test_trains_as_without_the_flag_and_keeps_less(
    combination: Combination, name: str, tmp_path: Path, matrix: Matrix
) -> None:
    plain, patched = compare(combination, name, tmp_path)
    check_saved_bytes(plain, patched, combination, name)
    record(matrix, combination, name, plain, patched)
