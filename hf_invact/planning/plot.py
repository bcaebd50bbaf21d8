"""A figure of what the variants of a model save for the backward pass."""

from __future__ import annotations

import os
from pathlib import Path

from .batch import batch_in_words
from .compare import Comparison
from .errors import PlanningError
from .text import unit_of


def check_plot(path: Path) -> None:
    """Check, before any work, that the figure can be drawn and written.

    Raises:
        PlanningError: matplotlib is not installed, or a PNG file cannot be written there.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PlanningError("plots need the package matplotlib: pip install matplotlib") from error
    if path.suffix.lower() != ".png":
        raise PlanningError(f"plots are PNG files, so the name must end in .png, got {str(path)!r}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PlanningError(f"{str(path)!r} cannot be written; choose a file in a folder that exists and is writable")


def save_plot(comparison: Comparison, path: Path) -> None:
    """Draw the saved bytes of each variant as a stacked bar, by part, in a PNG file.

    Raises:
        PlanningError: as `check_plot`.
        OSError: writing the file fails.
    """
    check_plot(path)
    from ..display.figures import png, saved_bytes_figure

    unit = unit_of(comparison)
    figure = saved_bytes_figure({variant.name: variant.saved for variant in comparison.variants}, unit)
    batch = f"batch of {batch_in_words(comparison.batch_size, comparison.seq_len)}"
    figure.suptitle(f"{comparison.model_class}, {batch}", x=0.01, ha="left", fontsize=11)
    path.write_bytes(png(figure))
