"""The table of combinations: each row is trained on the four models, and is a row of docs/compatibility.md."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.combinations.adapters import data_for_prompts, lora, with_adapters, with_ia3, with_lora, with_prompts
from tests.combinations.training import Combination
from tests.models import MODEL_NAMES, tiny_model

PRECISION, ADAPTERS = "Precision", "Adapters"
CHECKPOINTING = "Checkpointing and offloading"


def _weights(dtype: torch.dtype) -> partial:
    return partial(_model, dtype=dtype)


def _model(name: str, dtype: torch.dtype) -> torch.nn.Module:
    return tiny_model(name).to(dtype)


PRECISIONS = [
    Combination(PRECISION, "float32", tiny_model),
    Combination(PRECISION, "bfloat16 weights", _weights(torch.bfloat16)),
    Combination(PRECISION, "float16 weights", _weights(torch.float16), {"learning_rate": 0.01}),
    Combination(PRECISION, "autocast, `bf16=True`", tiny_model, {"bf16": True}),
]


def _loras() -> list[Combination]:
    rows = []
    for targets in ("all", "attention", "MLP"):
        for dropout in (0.0, 0.05):
            for are_float32 in (False, True):
                where = {"all": "all linear layers", "attention": "attention only", "MLP": "MLP only"}[targets]
                drops = f", dropout {dropout}" if dropout else ""
                precision = "float32 (PEFT's default), `bf16=True`" if are_float32 else "bfloat16"
                build = partial(with_lora, targets=targets, dropout=dropout, are_float32=are_float32)
                options = {"bf16": True} if are_float32 else {}
                row = f"LoRA on {where}{drops}, adapters {precision}"
                # Attention and MLP have each of these layers; tests/sites/adapters has them all in one model.
                alone = ("gpt2",) if targets == "all" else MODEL_NAMES
                rows.append(Combination(ADAPTERS, row, build, options, adapters_alone=alone))
    return rows


ADAPTED = [
    *_loras(),
    Combination(ADAPTERS, "LoRA, everything float32", lambda name: with_adapters(tiny_model(name), lora(name))),
    Combination(
        ADAPTERS,
        "DoRA",
        lambda name: with_adapters(tiny_model(name), lora(name, use_dora=True)),
        peak_within=("bert",),  # it multiplies its adapters by an identity matrix
    ),
    Combination(ADAPTERS, "IA3", with_ia3),
    Combination(
        ADAPTERS, "prompt tuning", with_prompts, {"learning_rate": 1.0}, data=data_for_prompts, tokens=2 * (16 + 4)
    ),
]


def _frozen_but_for_lora(name: str) -> torch.nn.Module:
    """As in a LoRA run with checkpointing: gradients have to reach the checkpointed layers."""
    model = with_lora(name, "all", 0.05, are_float32=True)
    model.enable_input_require_grads()
    return model


KEPT_ANYWAY = (
    "Only the checkpoints are kept; a layer keeps less while it is recomputed. (BERT's head is not checkpointed.)"
)
OFFLOADED = (
    "The change is that of the copied bytes. A tensor is copied once for each operation that saves it, so saving a "
    "GELU's output, which the next layer saves as well, gains nothing."
)
CHECKPOINTED = [
    Combination(
        CHECKPOINTING, f"checkpointing{which}", build, {"gradient_checkpointing": True, **options}, note=KEPT_ANYWAY
    )
    for which, build, options in (
        ("", tiny_model, {}),
        (", reentrant", tiny_model, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}),
        (" and LoRA, `bf16=True`", _frozen_but_for_lora, {"bf16": True}),
    )
]

TRAINED = [*PRECISIONS, *ADAPTED]
each_trained = pytest.mark.parametrize("combination", TRAINED, ids=str)
