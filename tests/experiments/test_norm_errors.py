"""The committed errors of norms keep what is promised, and are what is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.norm_errors import DRAWS, PLAIN, ROWS, SEED, lost, measure, synthetic
from hf_invact.ops import NORM_SAVINGS

RESULTS = json.loads((Path(__file__).parents[2] / "results" / "norm-errors.json").read_text(encoding="utf-8"))
MOST = 1.5  # times plain's own distance
LARGEST_SINE = 1e-11  # 1 - cosine
NOTHING = 1e-15  # of a gradient that is exactly 0


@pytest.mark.parametrize("norm", RESULTS["norms"], ids=lambda norm: f"{norm['form']}-{norm['weights']}")
def test_the_bars_of_norms_hold(norm: dict[str, Any]) -> None:
    if norm["lost"]:
        return
    for dtype in ("bf16", "fp16"):
        for errors in norm["errors"][dtype].values():
            assert errors["output"] <= MOST * errors[PLAIN] + NOTHING
            assert errors["input"] <= 1.02 * errors[PLAIN] + NOTHING
    for errors in norm["errors"]["fp32"].values():
        # For nearly equal vectors 1 - cosine is half the squared relative distance.
        assert errors["output"] ** 2 / 2 <= LARGEST_SINE


def test_the_weights_of_real_models_lose_nothing() -> None:
    counts = {norm["weights"]: (norm["norms"], norm["lost"]) for norm in RESULTS["norms"][:2]}
    assert counts == {"SmolLM2-135M": (61, 0), "MiniLM": (13, 0)}


def test_committed_errors_are_what_is_measured() -> None:
    assert (RESULTS["rows"], RESULTS["draws"], RESULTS["seed"]) == (ROWS, DRAWS, SEED)
    committed = {(norm["form"], norm["weights"]): norm for norm in RESULTS["norms"]}
    for weights in synthetic(("llama", "layer_norm")):
        norm = committed[weights.form.name, weights.title]
        assert norm["lost"] == lost(weights)
        if weights.title in ("near zero", "three zeros") and not norm["lost"]:
            for name, errors in measure(weights)["bf16"].items():
                for what in NORM_SAVINGS:  # PyTorch's own depend on the number of threads
                    assert errors[what] == pytest.approx(norm["errors"]["bf16"][name][what], rel=0.05)
