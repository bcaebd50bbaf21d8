"""Whole fine-tuning runs of tiny models: the files that they leave, and the numbers in them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from experiments.common.environment import describe_environment
from experiments.common.errors import ConfigError
from experiments.common.locks import LOCK
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import build, finetune
from tests.experiments.small import MODELS, RESULTS, SENTENCES, contents, losses, write_config, write_records
from tests.helpers import threads

VARIANTS = ("plain", "inverted")
SIZE = 2 * 16  # tokens in a batch
# Of the two layers, and of BERT's prediction head.
INTERMEDIATE = {"gpt2": 2 * 128, "bert": 2 * 64 + 32, "llama": 2 * 64}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The results of each model, plain and inverted, with their folders."""
    results: dict[str, dict[str, Any]] = {}
    for name in MODELS:
        for variant in VARIANTS:
            folder = tmp_path_factory.mktemp(f"{name}-{variant}")
            config = write_config(folder, name, use_inverted_activations=variant == "inverted")
            result = finetune(parse_run([str(config)]))
            results.setdefault(name, {})[variant] = {**result, "folder": folder / "run", "config": str(config)}
    return results


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def train(folder: Path, model: str = "gpt2", *callbacks: TrainerCallback, **changes: Any) -> dict[str, Any]:
    return finetune(parse_run([str(write_config(folder, model, **changes))]), callbacks)


each_model = pytest.mark.parametrize("name", MODELS)


@each_model
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_leaves_its_results_and_no_weights_where_none_are_asked_for(runs, name, variant):
    files = contents(runs[name][variant]["folder"])
    of_the_callback = ["inverted_activations.json"] if variant == "inverted" else []
    assert sorted(files) == sorted([*RESULTS, "settings.json", "run.json", *of_the_callback])


def test_results_are_those_of_the_example_scripts(runs):
    run = runs["gpt2"]["plain"]
    train, evaluation, both = (read(run["folder"] / f"{name}_results.json") for name in ("train", "eval", "all"))
    assert {"train_loss", "train_runtime", "train_samples_per_second", "epoch"} <= train.keys()
    assert {"eval_loss", "eval_runtime", "perplexity"} <= evaluation.keys()
    assert both == {**train, **evaluation}
    state = read(run["folder"] / "trainer_state.json")
    assert state["global_step"] == 6
    assert [log["loss"] for log in state["log_history"] if "loss" in log] == losses(run)
    assert math.isclose(train["train_loss"], sum(losses(run)) / 6, rel_tol=1e-6)


@each_model
@pytest.mark.parametrize("variant", VARIANTS)
def test_run_json_says_what_was_run_and_what_came_of_it(runs, name, variant):
    run = runs[name][variant]
    result = read(run["folder"] / "run.json")
    assert result == {key: value for key, value in run.items() if key not in ("folder", "config")}
    settings = parse_run([run["config"]]).settings()
    assert result["settings"] == read(run["folder"] / "settings.json") == settings
    assert result["environment"] == describe_environment()
    assert [entry["step"] for entry in result["loss"]] == [1, 2, 3, 4, 5, 6]
    assert result["eval"].keys() == {"eval_loss", "perplexity"}
    assert math.isclose(result["eval"]["perplexity"], math.exp(result["eval"]["eval_loss"]))
    assert result["dtype"] == "float32"
    assert 0 < result["step_seconds"] < result["train_seconds"] < 60
    assert (result["peak_cuda_allocated_bytes"] is None) is not torch.cuda.is_available()


@each_model
def test_the_number_of_parameters(runs, name):
    model = build(parse_run([runs[name]["plain"]["config"]])).model
    assert runs[name]["plain"]["parameters"] == model.num_parameters()


def test_the_text_is_named_and_hashed(runs, tmp_path):
    data = runs["bert"]["plain"]["data"]
    assert data["name"].endswith("text.txt")
    assert data == {**runs["bert"]["inverted"]["data"], "name": data["name"]}
    other = write_records(tmp_path / "other.jsonl", [{"text": text} for text in SENTENCES[1:]])
    assert build(parse_run([str(write_config(tmp_path, train_file=other))])).data["sha256"] != data["sha256"]


@each_model
def test_the_patched_sites_are_listed(runs, name):
    assert runs[name]["plain"]["patched"] == []
    every = runs[name]["inverted"]["patched"]
    assert sum(site["plan"] == "norm-output" for site in every) == {"gpt2": 5, "bert": 4, "llama": 5}[name]
    sites = [site for site in every if site["kind"] == "activation"]
    curve = {"gpt2": "gelu_tanh", "bert": "gelu", "llama": "silu"}[name]
    plan = {"gpt2": "output", "bert": "output", "llama": "gate-output"}[name]
    assert {(site["curve"], site["plan"]) for site in sites} == {(curve, plan)}
    places = [".0.", ".1.", "cls.predictions.transform"] if name == "bert" else [".0.", ".1."]
    assert all(place in site["name"] for place, site in zip(places, sites, strict=True))


def test_the_model_card(runs):
    plain, inverted = ((runs["bert"][variant]["folder"] / "README.md").read_text() for variant in VARIANTS)
    assert "inverted-activations" in inverted
    assert "inverted-activations" not in plain
    for card, variant in ((plain, "plain"), (inverted, "inverted")):
        assert "trained from scratch on the" in card
        assert f"Loss: {runs['bert'][variant]['eval']['eval_loss']:.4f}" in card


@each_model
def test_the_inverted_run_learns_the_same(runs, name):
    plain, inverted = (losses(runs[name][variant]) for variant in VARIANTS)
    assert inverted[0] == plain[0]  # the forward pass is the same to the last bit
    assert inverted == pytest.approx(plain, abs=1e-4)
    assert plain[-1] < plain[0] - 0.05  # it does learn


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("bert", "cls.predictions.transform.dense.weight", "cls.predictions.transform.LayerNorm.weight"),
        ("llama", "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"),
    ],
    ids=["bert", "llama"],
)
def test_only_gradients_before_the_last_activation_are_approximate(tmp_path, name, before, after):
    config = {"sites": ["activation"]}
    for flag in (False, True):
        changes = {"use_inverted_activations": flag, "inverted_activations_config": config if flag else None}
        train(tmp_path / str(flag), name, **changes, max_steps=1, save_strategy="steps")
    plain, inverted = (load_file(tmp_path / f"{flag}/run/model.safetensors") for flag in (False, True))
    assert torch.equal(plain[after], inverted[after])
    assert not torch.equal(plain[before], inverted[before])
    torch.testing.assert_close(plain[before], inverted[before], rtol=0, atol=1e-5)


@each_model
def test_what_an_activation_keeps(runs, name):
    units = {variant: runs[name][variant]["intermediate_units"] for variant in VARIANTS}
    # GPT-2's is unfused; BERT's keeps input and output; Llama's gate keeps four tensors.
    # One bit of 32 is 0.03.
    assert units["plain"] == {"gpt2": 5.0, "bert": 2.0, "llama": 4.0}[name]
    assert units["inverted"] == {"gpt2": 1, "bert": 1, "llama": 2}[name] + 1 / 32
    saved = {variant: runs[name][variant]["saved_parts"]["activation"] for variant in VARIANTS}
    outputs = SIZE * INTERMEDIATE[name] * 4
    assert saved["plain"] - saved["inverted"] == (units["plain"] - units["inverted"]) * outputs


@each_model
def test_what_norms_keep(runs, name):
    """A LayerNorm no longer its input, an RMSNorm neither that nor the normalized values. Both keep one channel's
    normalized values, and its index; a LayerNorm then no mean."""
    saved = {variant: runs[name][variant]["saved_bytes"] for variant in VARIANTS}
    less = {variant: saved[variant] - runs[name][variant]["saved_parts"]["activation"] for variant in VARIANTS}
    states, channel, index = SIZE * 32 * 4, SIZE * 4, 8
    norms, of_each = {"gpt2": (5, states), "bert": (4, states), "llama": (5, 2 * states - channel)}[name]
    assert less["plain"] - less["inverted"] == norms * (of_each - index)


@each_model
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parts_make_up_the_whole(runs, name, variant):
    run = runs[name][variant]
    assert sum(run["saved_parts"].values()) == run["saved_bytes"]
    assert run["saved_parts"]["activation"] == run["intermediate_units"] * SIZE * INTERMEDIATE[name] * 4


def test_classification(tmp_path):
    records = [{"text": text, "label": "yes" if "cat" in text else "no"} for text in SENTENCES]
    changes = {"train_file": write_records(tmp_path / "data.jsonl", records), "task": "sequence-classification"}
    result = train(tmp_path, "bert", **changes, use_inverted_activations=True)
    assert result["eval"].keys() == {"eval_loss", "eval_accuracy", "eval_f1", "eval_f1_macro"}
    assert result["intermediate_units"] == pytest.approx(1.03, abs=0.01)


def test_instructions_with_adapters(tmp_path):
    records = [{"instruction": text, "input": None, "output": text.upper()} for text in SENTENCES]
    result = train(
        tmp_path,
        "llama",
        train_file=write_records(tmp_path / "data.jsonl", records),
        text_template="### Instruction:\n{instruction}\n{input}\n### Response:\n{output}",
        max_seq_length=16,
        lora={"r": 2},
        save_strategy="steps",
        use_inverted_activations=True,
    )
    adapters = load_file(tmp_path / "run/adapter_model.safetensors")
    assert all("lora_" in name for name in adapters)
    assert read(tmp_path / "run/adapter_config.json")["r"] == 2
    # The MLPs are frozen, and down_proj keeps nothing.
    patched = [(site["curve"], site["plan"]) for site in result["patched"] if site["plan"] and site["kind"] != "norm"]
    assert patched == [("silu", "gate-inputs")] * 2
    assert result["intermediate_units"] == 2.0
    assert len(result["loss"]) == 6


def test_adapters_learn_the_same(tmp_path):
    plain, inverted = (
        train(tmp_path / str(flag), "llama", lora={"r": 2}, use_inverted_activations=flag) for flag in (False, True)
    )
    assert losses(plain)[0] == losses(inverted)[0]
    assert losses(inverted) == pytest.approx(losses(plain), abs=1e-4)
    assert inverted["saved_bytes"] < plain["saved_bytes"]


def test_adapters_of_quantized_weights_learn_the_same(tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install '.[quantization]'")
    # Its CPU kernel for evaluation does not support narrower layers.
    wide = {**MODELS["llama"], "hidden_size": 64, "intermediate_size": 128}
    train(tmp_path / "pretrained", "llama", model_config=wide, max_steps=1, save_strategy="steps")
    options = {
        **{"model_type": None, "model_config": None, "model_name_or_path": str(tmp_path / "pretrained/run")},
        **{"lora": {"r": 2, "target_modules": "all-linear"}, "quantization": {"load_in_4bit": True}, "bf16": True},
    }
    options["inverted_activations_config"] = {"sites": ["adapter", "activation"]}  # whose plans here are exact
    plain, inverted = (
        train(tmp_path / str(flag), "llama", use_inverted_activations=flag, **options) for flag in (False, True)
    )
    assert losses(inverted) == losses(plain)
    assert inverted["saved_bytes"] < plain["saved_bytes"]


def test_weights_are_saved_and_are_those_that_were_trained(tmp_path):
    untrained = build(parse_run([str(write_config(tmp_path, "llama"))])).model.state_dict()
    result = train(tmp_path, "llama", save_strategy="steps", save_steps=4, use_inverted_activations=True)
    files = contents(tmp_path / "run")
    assert {"model.safetensors", "config.json", "tokenizer.json", "checkpoint-4", "checkpoint-6"} <= files.keys()
    saved = load_file(tmp_path / "run/model.safetensors")
    assert saved.keys() == untrained.keys()
    assert all(not torch.equal(saved[name], untrained[name]) for name in saved)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert model.num_parameters() == result["parameters"]


def test_pretrained_weights_are_where_training_starts(tmp_path):
    train(tmp_path / "first", "llama", save_strategy="steps")
    changes = {"model_type": None, "model_config": None, "model_name_or_path": str(tmp_path / "first/run")}
    result = train(tmp_path / "second", "llama", **changes, learning_rate=0.0, save_strategy="steps")
    first, second = (load_file(tmp_path / name / "run/model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert result["eval"] == read(tmp_path / "first/run/run.json")["eval"]
    assert str(tmp_path / "first/run") in (tmp_path / "second/run/README.md").read_text()


def test_the_seed_changes_the_weights_but_not_the_split(tmp_path):
    one, other, again = (build(parse_run([str(write_config(tmp_path, seed=seed))])) for seed in (1, 2, 1))
    assert one.task.eval_dataset[:] == other.task.eval_dataset[:]
    weights = [next(experiment.model.parameters()) for experiment in (one, other, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_one_step_has_no_step_time(tmp_path):
    result = train(tmp_path, max_steps=1)  # the first warms up
    assert result["step_seconds"] is None
    assert len(result["loss"]) == 1


def test_settings_are_written_before_training_and_the_result_after_it(tmp_path):
    present: list[set[str]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            present.append({path.name for path in (tmp_path / "run").iterdir()})

    train(tmp_path, "gpt2", Look(), max_steps=1)
    assert present == [{"settings.json", LOCK}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_to": "carrier-pigeon"}, "the Trainer rejects these arguments: .*carrier-pigeon"),
        ({"inverted_activations_config": {"include": ["*.nope"]}}, r"the pattern '\*\.nope' matches none"),
        ({"use_liger_kernel": True}, "use_liger_kernel and use_inverted_activations"),
    ],
    ids=["reporter", "pattern", "liger"],
)
def test_refused_by_the_trainer(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, "bert", **changes, use_inverted_activations=True)
    assert not (tmp_path / "run/settings.json").exists()


def test_a_flag_that_finds_nothing_to_invert(tmp_path):
    changes = {"model_config": {**MODELS["bert"], "hidden_act": "relu"}}
    changes["inverted_activations_config"] = {"sites": ["activation"]}
    with pytest.raises(ConfigError, match="nothing to invert") as caught:
        train(tmp_path, "bert", **changes, use_inverted_activations=True)
    assert "\n" not in str(caught.value)


def test_an_experiment_is_immutable(tmp_path):
    experiment = build(parse_run([str(write_config(tmp_path))]))
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.data = {}
