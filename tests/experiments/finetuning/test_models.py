"""The tokenizer and the model of a run: fresh, from a folder, with adapters; and invalid arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.data.records import load_records
from experiments.finetuning.data.tasks import prepare
from experiments.finetuning.models import build_model, load_tokenizer
from tests.experiments.small import MODELS, SENTENCES, write_config, write_records


def built(folder: Path, model: str = "gpt2", **changes: Any) -> tuple[Any, Any]:
    """The tokenizer and the model of a run."""
    run = parse_run([str(write_config(folder, model, **changes))])
    records = load_records(run.data, 0)
    tokenizer = load_tokenizer(run.model, run.data, records)
    torch.manual_seed(0)
    return tokenizer, build_model(run.model, run.data, prepare(run.data, records, tokenizer), tokenizer)


def labelled(path: Path) -> str:
    records = [{"text": text, "label": ("no", "yes", "maybe")[n % 3]} for n, text in enumerate(SENTENCES)]
    return write_records(path, records)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a llama and its tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained")
    for part in built(folder, "llama"):
        part.save_pretrained(folder / "llama")
    return folder / "llama"


def from_folder(folder: Path, pretrained: Path, **changes: Any) -> tuple[Any, Any]:
    return built(
        folder, "llama", **{"model_type": None, "model_config": None, **changes, "model_name_or_path": str(pretrained)}
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_has_the_values_that_are_asked_for(tmp_path, name):
    tokenizer, model = built(tmp_path, name)
    assert model.config.model_type == name
    assert {key: getattr(model.config, key) for key in MODELS[name]} == MODELS[name]
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.dtype == torch.float32


def test_a_trained_tokenizer_knows_the_text(tmp_path):
    tokenizer, _ = built(tmp_path, "bert")
    assert tokenizer.unk_token_id not in tokenizer(SENTENCES[0])["input_ids"]
    assert len(tokenizer) <= 300


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(tmp_path, dtype):
    _, model = built(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_attention_implementation(tmp_path):
    _, model = built(tmp_path, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_classes_reach_the_head_and_the_config(tmp_path):
    data = {"task": "sequence-classification", "train_file": labelled(tmp_path / "data.jsonl")}
    _, model = built(tmp_path, "bert", **data)
    assert model.classifier.out_features == 3
    assert model.config.id2label == {0: "maybe", 1: "no", 2: "yes"}


def test_pretrained_weights_and_tokenizer(tmp_path, pretrained):
    tokenizer, model = from_folder(tmp_path, pretrained)
    own_tokenizer, own = built(tmp_path, "llama")
    assert tokenizer.get_vocab() == own_tokenizer.get_vocab()
    for name, value in own.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)


def test_values_of_a_pretrained_config_can_be_set(tmp_path, pretrained):
    _, model = from_folder(tmp_path, pretrained, model_config={"attention_dropout": 0.5})
    assert model.config.attention_dropout == 0.5


def test_a_pretrained_dtype(tmp_path, pretrained):
    _, model = from_folder(tmp_path, pretrained)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    for file in pretrained.glob("tokenizer*"):
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    assert from_folder(tmp_path, tmp_path / "half", dtype="auto")[1].dtype == torch.bfloat16
    assert from_folder(tmp_path, tmp_path / "half")[1].dtype == torch.float32


def test_another_tokenizer(tmp_path, pretrained):
    tokenizer, model = built(tmp_path, "gpt2", tokenizer_name=str(pretrained), tokenizer_vocab_size=260)
    assert len(tokenizer) > 260
    assert model.config.vocab_size == len(tokenizer)


def test_adapters(tmp_path):
    _, model = built(tmp_path, "llama", lora={"r": 2, "target_modules": ["q_proj", "down_proj"]})
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2  # layers, modules, A and B
    assert all("lora_" in name and ("q_proj" in name or "down_proj" in name) for name in trained)
    assert trained["base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight"] == (2, 64)


QUANTIZATION = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}


def test_quantized_weights_with_adapters(tmp_path, pretrained):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install '.[quantization]'")
    _, model = from_folder(
        tmp_path, pretrained, lora={"r": 2, "target_modules": "all-linear"}, quantization=QUANTIZATION
    )
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    assert type(layer.base_layer).__name__ == "Linear4bit"
    assert layer.base_layer.weight.quant_type == "nf4"
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"load_in_4bits": True}, "unknown option 'load_in_4bits' in quantization; did you mean 'load_in_4bit'?"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": 4}, "quantization: "),
    ],
    ids=["key", "value"],
)
def test_refused_quantization(tmp_path, pretrained, monkeypatch, quantization, message):
    monkeypatch.setattr("experiments.finetuning.models.find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=message):
        from_folder(tmp_path, pretrained, lora={"r": 2}, quantization=quantization)


def test_quantization_without_bitsandbytes(tmp_path, pretrained, monkeypatch):
    monkeypatch.setattr("experiments.finetuning.models.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes: pip install '\.\[quantization\]'"):
        from_folder(tmp_path, pretrained, lora={"r": 2}, quantization=QUANTIZATION)


@pytest.mark.parametrize("changes", [{"model_type": "llama"}, {"model_name_or_path": "x", "model_type": None}])
def test_quantization_is_for_pretrained_weights_with_adapters(tmp_path, changes):
    with pytest.raises(ConfigError, match=r"pretrained weights .* with adapters"):
        built(tmp_path, "llama", model_config=None, quantization=QUANTIZATION, **changes)


def test_the_head_of_a_classifier_is_trained_with_its_adapters(tmp_path):
    data = {"task": "sequence-classification", "train_file": labelled(tmp_path / "data.jsonl")}
    _, model = built(tmp_path, "bert", lora={"r": 2}, **data)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("classifier" in name for name in trained)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("gpt2", {"model_type": "gpt3"}, "model_type 'gpt3' is not an architecture of Transformers"),
        ("gpt2", {"model_config": {"n_layers": 2}}, "GPT2Config has no attribute 'n_layers'; did you mean 'n_layer'"),
        ("bert", {"model_config": {"hidden_size": 33, "num_attention_heads": 2}}, "cannot be built .*not a multiple"),
        ("bert", {"model_config": {"hidden_size": "wide"}}, "model_config: .*'hidden_size'.*expected int, got str"),
        ("bert", {"model_config": {"hidden_act": "gelux"}}, "cannot be built .*gelux"),
        ("gpt2", {"attn_implementation": "fast"}, 'cannot be built .*="fast"` is not supported'),
        ("gpt2", {"model_type": "vit", "model_config": {}}, "cannot be built .*ViTConfig.* AutoModelForCausalLM"),
        (
            "gpt2",
            {"model_config": {"n_positions": 8}},
            "max_seq_length=16 is more than this model's max_position_embeddings=8; .* model_config",
        ),
        ("llama", {"lora": {"rank": 2}}, "lora: .*'rank'"),
        ("llama", {"lora": {"target_modules": ["nope"]}}, "lora: .*'nope'.* not found"),
        (
            "gpt2",
            {"tokenizer_name": "some/tokenizer"},
            "tokenizer 'some/tokenizer' is neither .* configs/demo/gpt2.yaml",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refused(tmp_path, model, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        built(tmp_path, model, **changes)
    assert "\n" not in str(caught.value)


def test_a_hub_model_that_is_not_in_the_cache(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'gpt2' is neither a local folder nor in the cache.* configs/demo/bert\.yaml"
    ):
        from_folder(tmp_path, Path("gpt2"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "holds no readable tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no readable model"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x"),
            "the model cannot be built .*SafetensorError",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "holds no readable .*not a valid JSON"),
    ],
    ids=["no tokenizer", "no weights", "cut weights", "cut config"],
)
def test_a_damaged_folder(tmp_path, pretrained, damage, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in pretrained.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        from_folder(tmp_path, folder)


def test_a_folder_of_other_shapes(tmp_path, pretrained):
    with pytest.raises(ConfigError, match="the model cannot be built"):
        from_folder(tmp_path, pretrained, model_config={"intermediate_size": 48})
