"""Reports of a training with the flag: a line when it begins, another when it ends, and a file."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hf_invact import InvertedActivationsCallback, MemoryCallback, PatchingError, patch_model
from hf_invact.display.sizes import size
from hf_invact.trainer.outcome import Outcome
from hf_invact.trainer.site_calls import SiteCalls
from tests.models import each_model, tiny_model
from tests.trainer.helpers import SAVED, arguments, make_trainer, training_logs

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
FILE = "inverted_activations.json"
SITES = {"sites": ["activation"]}
ALONE = {"inverted_activations_config": SITES}
INDEX = 8  # bytes: each inverted norm keeps the index of one channel, whatever the number of tokens


def without_gain() -> PreTrainedModel:
    """The layers after its activations are frozen, and save nothing."""
    model = tiny_model("gpt2", activation="gelu_pytorch_tanh")
    for layer in model.transformer.h:
        layer.mlp.c_proj.requires_grad_(False)
    return model


def lines(model: PreTrainedModel, folder: Path, caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    """The warnings of a training."""
    args = arguments(folder, use_inverted_activations=True, max_steps=1, **options)
    make_trainer(model, args, InvertedActivationsCallback()).train()
    return [record.getMessage() for record in ours(caplog) if record.levelno >= logging.WARNING]


def ours(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("hf_invact.")]


def outcome(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text())
    return found


def test_one_line_says_what_is_done_and_one_what_was(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin, end = lines(tiny_model("llama"), tmp_path, caplog)
    assert begin == ("inverted activations: 7 of 7 sites patched, 2.71 KiB per token less for the backward pass")
    kept, plain = (outcome(tmp_path)[f"saved_activation_bytes{kind}"] for kind in ("", "_plain"))
    assert plain - kept == (2 * 756 + 5 * (260 - 8)) * 32  # gates and norms, 32 tokens
    assert end.startswith(
        "inverted activations at the end: 7 of 7 sites; kept for the backward pass in the first step: "
        f"{size(kept)} (without: {size(plain)}, computed); "
    )
    assert end.endswith(f"why, site by site: {tmp_path / FILE}")


def test_of_a_model_with_adapters(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it would have kept is computed from adapters that share their input, one after the other."""
    trainers = []
    for folder, on in ((tmp_path / "plain", False), (tmp_path, True)):
        torch.manual_seed(0)
        model = tiny_model("llama")
        model.enable_input_require_grads()  # else there is no mask of the first layer's dropout
        adapted = get_peft_model(model, LoraConfig(r=4, lora_dropout=0.1, target_modules="all-linear"))
        args = arguments(folder, use_inverted_activations=on, max_steps=1)
        trainers.append(make_trainer(adapted, args, InvertedActivationsCallback()))
        trainers[-1].train()
    begin, end = [record.getMessage() for record in ours(caplog) if record.levelno >= logging.WARNING]
    assert begin.startswith("inverted activations: 20 of 21 sites patched, ")
    assert end.startswith("inverted activations at the end: 20 of 21 sites; ")
    plain, patched = (training_logs(trainer)[0][SAVED] for trainer in trainers)
    assert outcome(tmp_path)[SAVED] == patched < 0.5 * plain
    assert outcome(tmp_path)["saved_activation_bytes_plain"] == pytest.approx(plain, rel=1e-3)
    kinds = [site["kind"] for site in outcome(tmp_path)["sites"]]
    assert [kinds.count(kind) for kind in ("adapter", "activation", "norm")] == [14, 2, 5]


def test_a_training_in_which_nothing_keeps_less_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begin, end = lines(without_gain(), tmp_path, caplog, **ALONE)
    assert begin == ("inverted activations: 0 of 2 sites patched, so no memory is saved (nothing would keep less)")
    assert end.startswith("inverted activations at the end: 0 of 2 sites; ")
    assert outcome(tmp_path)["saved_activation_bytes_plain"] == outcome(tmp_path)["saved_activation_bytes"]


def test_where_that_is_required_it_is_refused_before_training(tmp_path: Path) -> None:
    config = '{"require": true, "sites": ["activation"]}'
    options = {"use_inverted_activations": True, "inverted_activations_config": config}
    with pytest.raises(PatchingError, match=r"require=True: .*nothing would keep less"):
        make_trainer(without_gain(), arguments(tmp_path, **options), InvertedActivationsCallback())
    make_trainer(tiny_model("llama"), arguments(tmp_path, **options), InvertedActivationsCallback())


def test_a_plan_that_is_demanded_and_applies_nowhere_is_refused_before_training(tmp_path: Path) -> None:
    args = arguments(
        tmp_path, use_inverted_activations=True, inverted_activations_config={**SITES, "plan": "gate-output"}
    )
    with pytest.raises(PatchingError, match=r"plan='gate-output' is demanded: .*is not multiplied"):
        make_trainer(tiny_model("gpt2"), args, InvertedActivationsCallback())


@pytest.mark.parametrize("is_reentrant", [False, True], ids=["checkpointing", "reentrant"])
@pytest.mark.parametrize(
    ("name", "less", "between"),
    [("llama", "1.23 KiB", "is 252 B per token less"), ("bert", "628 B", "is 124 B per token less")],
)
def test_under_checkpointing_it_says_what_it_means_there(
    name: str, less: str, between: str, is_reentrant: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"gradient_checkpointing": True}
    options["gradient_checkpointing_kwargs"] = {"use_reentrant": is_reentrant}
    begin, *_ = lines(tiny_model(name), tmp_path, caplog, **options)
    assert f"Gradient checkpointing is on: the layer that is being recomputed keeps {less} per token less" in begin
    assert f"what is kept between the forward and the backward pass {between}" in begin
    kept, plain = (outcome(tmp_path)[key] for key in (SAVED, f"{SAVED}_plain"))
    assert abs(plain - measured(tiny_model(name), tmp_path, **options)) <= INDEX
    assert kept < plain


def measured(model: PreTrainedModel, folder: Path, **options: Any) -> int:
    """Bytes saved without inverted activations."""
    trainer = make_trainer(model, arguments(folder, max_steps=1, **options), MemoryCallback())
    trainer.train()
    kept: int = training_logs(trainer)[0][SAVED]
    return kept


@each_model
@pytest.mark.parametrize("options", [{}, {"bf16": True}], ids=["float32", "bf16"])
def test_the_bytes_that_are_computed_are_those_that_are_measured_without(
    name: str, options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines(tiny_model(name), tmp_path, caplog, **options)
    found = outcome(tmp_path)
    indices = INDEX * [site["plan"] for site in found["sites"]].count("norm-output")
    assert found["saved_activation_bytes_plain"] == measured(tiny_model(name), tmp_path, **options) + indices
    assert found["saved_activation_bytes"] < 0.95 * found["saved_activation_bytes_plain"]


def test_the_file_says_why_site_by_site(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines(tiny_model("llama"), tmp_path, caplog, inverted_activations_config={**SITES, "exclude": ["*.0.mlp"]})
    found = outcome(tmp_path)
    assert (found["sites_patched"], found["sites_found"], found["saved_bytes_per_token"]) == (1, 2, 756)
    assert [(site["plan"], site["reason"], site["tokens_in_first_step"]) for site in found["sites"]] == [
        (None, "left alone: excluded by the config", None),
        ("gate-output", "", 32),
    ]
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).mkdir()
    _, warning, end = lines(tiny_model("llama"), tmp_path, caplog)
    assert warning.startswith(f"{FILE} could not be written: ")
    assert "why, site by site" not in end
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


class AnotherProcess(TrainerCallback):
    """Makes the Trainer believe that this process is not the first one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.is_local_process_zero = state.is_world_process_zero = False


def test_another_process_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(tmp_path, use_inverted_activations=True)
    make_trainer(tiny_model("llama"), args, AnotherProcess(), InvertedActivationsCallback()).train()
    assert ours(caplog) == []
    assert not (tmp_path / FILE).exists()


def test_nothing_is_said_without_the_flag(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(tiny_model("llama"), arguments(tmp_path), InvertedActivationsCallback()).train()
    assert ours(caplog) == []
    assert not (tmp_path / FILE).exists()


def test_a_part_that_does_not_train_is_not_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    plain = tiny_model("llama")
    plain.load_state_dict(model.state_dict())
    for weight, like in zip(plain.parameters(), model.parameters(), strict=True):
        weight.requires_grad_(like.requires_grad)
    lines(model, tmp_path, caplog, **ALONE)
    found = outcome(tmp_path)
    assert found["sites"][0]["tokens_in_first_step"] == 0
    assert found["saved_activation_bytes_plain"] == measured(plain, tmp_path)


def test_a_run_shorter_than_its_logging_steps_shows_its_figures_at_the_end(tmp_path: Path) -> None:
    args = arguments(tmp_path, use_inverted_activations=True, logging_steps=100)
    trainer = make_trainer(tiny_model("llama"), args, InvertedActivationsCallback())
    result = trainer.train()
    (entry,) = trainer.state.log_history
    assert entry["train_runtime"] > 0
    assert entry[SAVED] == result.metrics[SAVED] == outcome(tmp_path)[SAVED] > 0


@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (8,)], ids=str)
def test_where_tokens_cannot_be_counted_no_bytes_are_claimed(shape: tuple[int, ...]) -> None:
    model = nn.ModuleDict({"block": nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))})
    report, calls = patch_model(model), SiteCalls()
    with ExitStack() as until:
        calls.watch(model, until.callback)
        model["block"](torch.randn(2, 3, 8))
        assert (
            Outcome(report, saved_bytes=1000, tokens=calls.tokens).plain_saved_bytes
            == 1000 + 6 * report.saved_bytes_per_token
        )
        model["block"](torch.randn(shape))
    outcome = Outcome(report, saved_bytes=1000, tokens=calls.tokens)
    assert outcome.plain_saved_bytes is None
    assert "1000 B (without: unknown)" in outcome.text(None)
    assert Outcome(report).plain_saved_bytes is None
    assert "was not measured" in Outcome(report).text(None)
