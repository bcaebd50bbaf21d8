"""Files that are saved while a model is patched are the same as without this package, and can be loaded without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_invact import InvertedActivationsCallback, patch_model, unpatch_model
from tests.models import MODEL_NAMES, each_model, loss_and_gradients, tiny_model
from tests.trainer.helpers import arguments, is_patched, make_trainer

FILES = ("model.safetensors", "config.json")


def loss_of(model: PreTrainedModel) -> float:
    ids = torch.arange(3, 35).view(2, 16)
    with torch.no_grad():
        return model.eval()(input_ids=ids, labels=ids).loss.item()


@each_model
def test_save_pretrained_writes_the_same_files(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "plain")
    patch_model(model)
    model.save_pretrained(tmp_path / "patched")
    names = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "patched").iterdir())
    assert set(FILES) <= set(names)
    for file in names:
        assert (tmp_path / "patched" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


@each_model
def test_the_state_dict_is_the_same(name: str) -> None:
    model = tiny_model(name)
    plain = model.state_dict()
    patch_model(model)
    patched = model.state_dict()
    assert list(patched) == list(plain)
    assert all(patched[key].data_ptr() == value.data_ptr() for key, value in plain.items())
    assert patched._metadata.keys() == plain._metadata.keys()  # type: ignore[attr-defined]


@each_model
def test_a_checkpoint_has_the_same_keys_and_the_weights_that_were_trained(name: str, tmp_path: Path) -> None:
    def train(flag: bool) -> tuple[PreTrainedModel, dict[str, Any]]:
        folder = tmp_path / str(flag)
        args = arguments(folder, use_inverted_activations=flag, save_strategy="steps", save_steps=3)
        model = tiny_model(name)
        make_trainer(model, args, InvertedActivationsCallback()).train()
        return model, load_file(folder / "checkpoint-3" / "model.safetensors")

    _, plain = train(False)
    model, patched = train(True)
    assert patched.keys() == plain.keys()
    weights = model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in patched.items())
    for key, value in plain.items():
        assert torch.allclose(patched[key], value, rtol=0, atol=1e-2), key  # three steps of Adam


@pytest.mark.slow
def test_plain_transformers_loads_what_was_saved_while_patched(tmp_path: Path) -> None:
    expected, folders = [], []
    for name in MODEL_NAMES:
        model = tiny_model(name)
        args = arguments(tmp_path / name, use_inverted_activations=True, save_strategy="steps", save_steps=3)
        make_trainer(model, args, InvertedActivationsCallback()).train()
        folders.append(tmp_path / name / "checkpoint-3")
        patch_model(model)
        torch.save(model.state_dict(), folders[-1] / "state.pt")
        torch.save(model, folders[-1] / "patched.pt")
        unpatch_model(model)
        torch.save(model, folders[-1] / "unpatched.pt")
        expected.append(loss_of(model))
    script = Path(__file__).with_name("plain.py")
    command = [sys.executable, str(script), *map(str, folders)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    found = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(expected)
    for losses, loss in zip(found, expected, strict=True):
        # Only the pickled model holds the patched activations, and needs the package.
        assert "hf_invact" in losses.pop("patched")
        assert losses == {kind: pytest.approx(loss, rel=1e-6) for kind in ("pretrained", "state", "unpatched")}


@each_model
def test_a_model_pickled_whole_is_patched_when_loaded(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    patch_model(model)
    torch.save(model, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert is_patched(loaded)
    loss, gradients = loss_and_gradients(model)
    loaded_loss, loaded_gradients = loss_and_gradients(loaded)
    assert torch.equal(loaded_loss, loss)
    assert all(torch.equal(loaded_gradients[key], value) for key, value in gradients.items())
    unpatch_model(loaded)
    assert not is_patched(loaded)
    with pytest.raises(Exception, match="weights_only"):  # by default, PyTorch loads no pickled model
        torch.load(tmp_path / "model.pt")
