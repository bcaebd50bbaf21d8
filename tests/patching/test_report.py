"""What a user reads about a patched model."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

from hf_invact import PatchReport, patch_model
from hf_invact.patching import SiteReport
from tests.models import ACTIVATIONS, WITHOUT_NORMS, tiny_model
from tests.patching.mlps import MLP, Training

SITE = SiteReport("layers.0.mlp.act", "MLP", "GELU", "gelu", "output", 2048, 1088)


def report_of(*names: str) -> PatchReport:
    return PatchReport(tuple(replace(SITE, name=name) for name in names))


def test_of_a_model_with_equal_layers() -> None:
    assert str(patch_model(tiny_model("llama", num_hidden_layers=12), ACTIVATIONS)).splitlines() == [
        "inverted activations: 12 of 12 sites patched, 8.86 KiB per token less for the backward pass",
        "  site                               block     original        plan                each keeps per token",
        "  model.layers.0-11.mlp.act_fn (12)  LlamaMLP  SiLUActivation  gate-output (silu)  1.50 KiB -> 780 B",
        "  gate-output: keeps the product, up and one bit per element; approximate gradients",
    ]


def test_of_a_model_with_different_blocks() -> None:
    model = nn.ModuleDict({"text": tiny_model("bert"), "decoder": tiny_model("llama")})
    model["decoder"].model.layers[1].mlp.down_proj.requires_grad_(False)
    model["decoder"].model.layers[0].mlp.act_fn = nn.ReLU()
    report = patch_model(model, replace(ACTIVATIONS, exclude=("text.cls.*",)))
    rows = [[cell for cell in line.split("  ") if cell] for line in str(report).splitlines()]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["inverted activations: 3 of 5 sites patched, 1.10 KiB per token less for the backward pass"],
        ["site", "block", "original", "plan", "each keeps per token", "why"],
        [
            "text.bert.encoder.layer.0-1.intermediate.intermediate_act_fn (2)",
            *("BertIntermediate", "GELUActivation", "output (gelu)", "2.08 KiB -> 1.71 KiB"),
        ],
        [
            "text.cls.predictions.transform.transform_act_fn",
            *("BertPredictionHeadTransform", "GELUActivation", "-", "left alone: excluded by the config"),
        ],
        [
            "decoder.model.layers.0.mlp.act_fn",
            *("LlamaMLP", "ReLU", "-", "left alone: its gradient already uses the output"),
        ],
        [
            "decoder.model.layers.1.mlp.act_fn",
            *("LlamaMLP", "SiLUActivation", "gate-inputs (silu)", "1.12 KiB -> 768 B"),
        ],
        ["gate-inputs: keeps gate and up; exact gradients"],
        ["output: keeps the output and one bit per element; approximate gradients"],
    ]


def test_of_a_model_with_adapters() -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.1, target_modules=["up_proj", "down_proj"]))
    rows = [re.split(" {2,}", line.strip()) for line in str(patch_model(adapted, WITHOUT_NORMS)).splitlines()]
    assert rows[1][:4] == ["site", "block", "original", "plan"]
    assert [row[1:4] for row in rows[2:5]] == [
        ["LlamaMLP", "LoRA", "adapter-input"],
        ["LlamaMLP", "LoRA", "adapter-input"],
        ["LlamaMLP", "SiLUActivation", "gate-output (silu)"],
    ]
    assert rows[2][0] == "base_model.model.model.layers.0-2.mlp.up_proj (3)"


def test_of_a_model_that_is_left_alone() -> None:
    report = patch_model(MLP("gpt2", Training(frozen=("down",))).model, ACTIVATIONS)
    assert str(report).splitlines() == [
        "inverted activations: 0 of 1 sites patched",
        "  site                     block    original  plan  each keeps per token  why",
        "  transformer.h.0.mlp.act  GPT2MLP  GELUTanh  -     192 B -> 192 B        left alone: nothing would keep less",
    ]


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["layers.0.act"], "layers.0.act"),
        (["layers.0.act", "layers.1.act"], "layers.0-1.act (2)"),
        ([f"layers.{layer}.act" for layer in (0, 1, 2, 5, 9, 10, 11)], "layers.0-2,5,9-11.act (7)"),
        ([f"layers.{n}.experts.{e}.act" for n in (1, 3) for e in range(4)], "layers.1,3.experts.0-3.act (8)"),
        (["blocks.0.mlp2.act", "blocks.1.mlp2.act"], "blocks.0-1.mlp2.act (2)"),
    ],
)
def test_equal_sites_share_a_row(names: list[str], joined: str) -> None:
    assert str(report_of(*names)).splitlines()[2].split("  ")[1] == joined


def test_equal_sites_share_a_row_wherever_they_are() -> None:
    report = report_of("0.a", "0.b", "1.a", "1.b")
    assert [line.split("  ")[1].strip() for line in str(report).splitlines()[2:4]] == ["0-1.a (2)", "0-1.b (2)"]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (768, 396, "768 B -> 396 B"),
        (9000, 10 * 1024, "8.79 KiB -> 10.00 KiB"),
        (88064, 45408, "86.00 KiB -> 44.34 KiB"),
    ],
)
def test_sizes_are_easy_to_compare(before: int, after: int, text: str) -> None:
    assert text in str(PatchReport((replace(SITE, before=before, after=after),)))


def test_the_whole_is_the_sum_of_what_was_measured() -> None:
    sites = (SITE, replace(SITE, before=None, after=None), replace(SITE, curve=None, plan=None))
    assert PatchReport(sites).saved_bytes_per_token == 2048 - 1088
    assert PatchReport(sites).patched == 2


LEFT = replace(
    SITE, name="layers.1.mlp.act", curve=None, plan=None, after=2048, reason="left alone: nothing keeps less"
)
UNKNOWN = replace(SITE, name="layers.2.mlp.act", before=None, after=None, reason="by default, not measured: sharded")
HEAD = replace(SITE, name="head.act", before=512, after=256)
HEADLINE = "inverted activations: "
CHECKPOINTED = (
    ". Gradient checkpointing is on: the layer that is being recomputed keeps 960 B per token less, but what is kept "
    "between the forward and the backward pass "
)


@pytest.mark.parametrize(
    ("sites", "text"),
    [
        ([SITE, SITE], "2 of 2 sites patched, 1.88 KiB per token less for the backward pass"),
        ([LEFT, LEFT], "0 of 2 sites patched, so no memory is saved (nothing keeps less)"),
        (
            [SITE, LEFT],
            "1 of 2 sites patched, 960 B per token less for the backward pass; 1 left alone (nothing keeps less)",
        ),
        ([UNKNOWN], "1 of 1 sites patched; 1 not measured (by default, not measured: sharded)"),
        ([replace(SITE, after=2048)], "1 of 1 sites patched, which keep as much for the backward pass as without"),
        ([replace(SITE, after=2112)], "1 of 1 sites patched, 64 B per token more for the backward pass"),
        (
            [replace(LEFT, reason=f"left alone: {number}") for number in range(5)],
            "0 of 5 sites patched, so no memory is saved (0; 1; 2; and 2 more reasons)",
        ),
    ],
    ids=["all", "none", "some", "not measured", "as much", "more", "many reasons"],
)
def test_one_line_says_what_was_done_or_why_nothing_was(sites: list[SiteReport], text: str) -> None:
    assert PatchReport(tuple(sites)).summary() == HEADLINE + text


@pytest.mark.parametrize(
    ("sites", "text"),
    [
        ([SITE, replace(SITE, name="layers.1.act")], f"2 of 2 sites patched{CHECKPOINTED}does not change"),
        ([SITE, HEAD], f"2 of 2 sites patched{CHECKPOINTED}is 256 B per token less"),
        ([HEAD], "1 of 1 sites patched, 256 B per token less for the backward pass"),
    ],
    ids=["layers", "layers and a head", "a head"],
)
def test_where_layers_are_recomputed_one_of_them_keeps_less(sites: list[SiteReport], text: str) -> None:
    assert PatchReport(tuple(sites)).summary(checkpointed=("layers.0", "layers.1")) == HEADLINE + text
