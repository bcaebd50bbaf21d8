"""The config and class that a name stands for, and the errors if there is none."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from transformers import (
    BertConfig,
    CLIPVisionConfig,
    LlamaConfig,
    PretrainedConfig,
    ResNetConfig,
    T5Config,
    Wav2Vec2Config,
)

from hf_invact import PlanningError, plan_memory
from hf_invact.planning.model.source import find_source
from tests.planning.small import small_config


def refusal(model: str | Path | PretrainedConfig, seq_len: int = 16, **options: Any) -> str:
    with pytest.raises(PlanningError) as caught:
        plan_memory(model, 1, seq_len, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def written(folder: Path, content: str) -> Path:
    path = folder / "config.json"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(), "BertForMaskedLM"),
        (BertConfig(is_decoder=True), "BertLMHeadModel"),
        (BertConfig(architectures=["BertForTokenClassification"]), "BertForTokenClassification"),
        (BertConfig(architectures=["BertModel"]), "BertForMaskedLM"),  # BertModel has no loss
        (BertConfig(architectures=["OfMyOwn"]), "BertForMaskedLM"),
        (T5Config(), "T5ForConditionalGeneration"),
        (LlamaConfig(), "LlamaForCausalLM"),
    ],
    ids=["encoder", "decoder", "named", "named without a loss", "unknown", "encoder-decoder", "causal"],
)
def test_the_class_of_a_config(config: PretrainedConfig, expected: str) -> None:
    assert find_source(config).model_class.__name__ == expected


def test_a_folder_and_its_file_are_the_same(tmp_path: Path) -> None:
    small_config("llama").save_pretrained(tmp_path)
    folder, file = find_source(tmp_path), find_source(tmp_path / "config.json")
    assert folder.config.to_dict() == file.config.to_dict()
    assert (folder.name, folder.model_class) == (str(tmp_path), file.model_class)


def test_a_name_without_a_network_fails_at_once() -> None:
    start = time.perf_counter()
    message = refusal("nobody/nothing")
    assert time.perf_counter() - start < 2
    assert "'nobody/nothing' is neither a local folder nor in the cache, and the hub cannot be reached" in message
    assert "give a local folder or a config.json instead" in message


def test_a_name_that_no_model_can_have() -> None:
    message = refusal("two words/no model")
    assert message.startswith("'two words/no model' is neither a local folder nor a model on the hub")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def unreachable(api: HfApi, name: str, timeout: float) -> None:
        calls.append(timeout)
        raise TimeoutError("no answer")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    assert "the hub cannot be reached (no answer)" in refusal("nobody/nothing")
    assert calls == [5.0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"model_type": "llama"', "is not valid JSON (Expecting ',' delimiter"),
        ("[]", "has no model_type; add one"),
        ("{}", "has no model_type; add one"),
        ('{"model_type": "lama"}', "the installed Transformers has no model_type 'lama' (in"),
        ('{"model_type": "of_my_own"}', "its code may be custom, or need a newer Transformers"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "is invalid"),
        ('{"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}}', "are quantized"),
        ('{"model_type": "bert", "hidden_size": 30, "num_attention_heads": 4}', "cannot be built without weights"),
    ],
    ids=["damaged", "a list", "empty", "misspelt type", "unknown type", "bad value", "quantized", "cannot be built"],
)
def test_a_config_that_cannot_be_used(content: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(written(tmp_path, content))


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert refusal(tmp_path).endswith("holds no config.json; save one there with config.save_pretrained")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no file or folder" in refusal(tmp_path / "missing" / "config.json")


def test_a_model_that_has_no_loss() -> None:
    assert "no class of Transformers can train 'clip_vision_model'" in refusal(CLIPVisionConfig())


def test_more_tokens_than_positions() -> None:
    assert "seq_len=65 is more than the 64 positions that this model has" in refusal(small_config("bert"), 65)
    assert "seq_len=62 is more than the 61 positions" in refusal(small_config("roberta"), 62)  # its padding is token 2
    assert plan_memory(small_config("llama"), 1, 65).seq_len == 65  # rotary positions have no limit


def test_a_model_of_other_inputs() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    message = refusal(Wav2Vec2Config(**small, architectures=["Wav2Vec2ForCTC"]))
    assert "Wav2Vec2ForCTC takes input_values" in message
    assert "only models of text, images and log-mel spectra can be planned" in message


@pytest.mark.parametrize(
    "options", [{"dtype": "int8"}, {"attention": "flash"}, {"device": "tpu"}], ids=["dtype", "attention", "device"]
)
def test_options_that_are_not_known(options: dict[str, str]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got '{value}'"):
        plan_memory(small_config("llama"), 1, 16, **options)


def test_a_config_that_was_saved_is_read_whole(tmp_path: Path) -> None:
    small_config("llama", intermediate_size=80).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert find_source(tmp_path).config.intermediate_size == values["intermediate_size"] == 80


@pytest.mark.parametrize("named", [3, [3], "LlamaForCausalLM", []], ids=["number", "numbers", "one name", "none"])
def test_architectures_that_are_no_list_of_names(named: object, tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"model_type": "llama", "architectures": named}))
    assert find_source(path).model_class.__name__ == "LlamaForCausalLM"


def test_images_of_any_size() -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    assert "plan one by an image_size in its config" in refusal(config)
    config.image_size = 32
    assert plan_memory(config, 2).model_class == "ResNetForImageClassification"
