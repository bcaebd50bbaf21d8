"""Which checkpoint a run continues from, and which ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from experiments.common.errors import ConfigError
from experiments.finetuning.checkpoints.resume import check_checkpoint, check_complete, last_resumable_checkpoint
from tests.experiments.small import MODELS, contents

STATE = '{"global_step": 1, "max_steps": 200}'


def checkpoint(folder: Path, step: int, state: str | None = STATE) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def complete(folder: Path, step: int, state: str | None = STATE) -> Path:
    """A checkpoint with everything that a run needs to continue."""
    path = checkpoint(folder, step, state)
    save_file({"weight": torch.zeros(2)}, path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "training_args.bin"):
        torch.save({"name": name, "values": torch.arange(100)}, path / name)
    (path / "config.json").write_text('{"model_type": "llama"}')
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def zero(path: Path) -> None:
    """Zeros in the middle, as after a power failure."""
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(400) + content[600:])


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def saved(folder: Path, model: nn.Module) -> Path:
    """A complete checkpoint of a model, saved as Transformers or peft save it."""
    path = checkpoint(folder, 1)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(path)
    else:
        save_file(model.state_dict(), path / "model.safetensors")
    return path


def llama(kind: type = LlamaForCausalLM, **changes) -> nn.Module:
    torch.manual_seed(0)
    return kind(LlamaConfig(vocab_size=50, **{**MODELS["llama"], **changes}, pad_token_id=0))


def adapted(rank: int = 2, kind: type = LlamaForCausalLM, task: str = "CAUSAL_LM") -> nn.Module:
    return peft.get_peft_model(llama(kind), peft.LoraConfig(task_type=task, r=rank))


def test_the_last_one_by_number(tmp_path):
    for step in (9, 100, 20):
        complete(tmp_path, step)
    assert last_resumable_checkpoint(tmp_path) == tmp_path / "checkpoint-100"


@pytest.mark.parametrize(
    "state",
    [None, "", '{"global_step": 1', "\x00" * 8, "{}", "[]", "null", "3", '{"global_step": "1", "max_steps": 2}'],
    ids=["missing", "empty", "cut", "zeros", "no steps", "list", "null", "number", "text"],
)
def test_an_incomplete_one_is_skipped(tmp_path, state):
    complete(tmp_path, 4)
    complete(tmp_path, 6, state)
    assert last_resumable_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_that_of_the_last_step_is_taken(tmp_path):
    complete(tmp_path, 4)
    complete(tmp_path, 6, '{"global_step": 6, "max_steps": 6}')
    assert last_resumable_checkpoint(tmp_path) == tmp_path / "checkpoint-6"


ARCHIVES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        *((name, spoil) for name in ARCHIVES for spoil in (cut, zero, replace_by_a_folder, Path.unlink)),
        *(("model.safetensors", spoil) for spoil in (cut, replace_by_a_folder, Path.unlink)),
        *(("config.json", spoil) for spoil in (cut, replace_by_a_folder)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path, caplog, name, spoil):
    complete(tmp_path, 4)
    spoil(complete(tmp_path, 6) / name)
    assert last_resumable_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    what = "holds no weights" if (name, spoil) == ("model.safetensors", Path.unlink) else name.partition(".")[0]
    assert f"skipping a damaged checkpoint: {tmp_path / 'checkpoint-6'}: " in record.message
    assert what in record.message
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(
        ConfigError, match=f"every checkpoint in {tmp_path} is damaged .*{what}.*; remove them to start over"
    ):
        last_resumable_checkpoint(tmp_path)


def test_one_of_the_weights_alone_is_taken(tmp_path):
    path = complete(tmp_path, 6)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
        (path / name).unlink()
    assert last_resumable_checkpoint(tmp_path) == path


def test_one_of_deepspeed_is_taken(tmp_path):
    path = complete(tmp_path, 6)
    (path / "global_step6").mkdir()
    for name in ("optimizer.pt", "scheduler.pt"):
        (path / name).unlink()
    assert last_resumable_checkpoint(tmp_path) == path


def test_where_there_is_none(tmp_path):
    checkpoint(tmp_path, 6, state=None)
    (tmp_path / "checkpoint-old").mkdir()
    (tmp_path / "checkpoint-7").touch()
    assert last_resumable_checkpoint(tmp_path) is None
    assert last_resumable_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    "model",
    [
        llama(),
        llama(tie_word_embeddings=True),
        adapted(),
        adapted(kind=LlamaForSequenceClassification, task="SEQ_CLS"),  # its head is trained and saved completely
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),  # has buffers
    ],
    ids=["plain", "tied", "adapters", "adapters and head", "buffers"],
)
def test_its_own_checkpoint_suits_a_model(tmp_path, model):
    path = saved(tmp_path, model)
    before = contents(tmp_path)
    check_checkpoint(path, model)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_a_shared_parameter_is_saved_under_either_name(tmp_path, name):
    model = llama(tie_word_embeddings=True)
    weights = {key: value.clone() for key, value in model.state_dict().items() if key == name or "layers" in key}
    path = checkpoint(tmp_path, 1)
    save_file({**weights, "model.norm.weight": model.model.norm.weight.clone()}, path / "model.safetensors")
    check_checkpoint(path, model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (llama(hidden_size=64), r"has the shape \(.*32.*\), but here it is \(.*64.*\)"),
        (llama(num_hidden_layers=1), r"this one has no parameter model\.layers\.1\."),
        (llama(num_hidden_layers=3), r"it has no parameter model\.layers\.2\."),
        (nn.Linear(2, 2), "this one has no parameter"),
        (adapted(), "this one has no parameter"),
    ],
    ids=["wider", "fewer layers", "more layers", "other", "with adapters"],
)
def test_a_checkpoint_of_another_model(tmp_path, model, message):
    path = saved(tmp_path, llama())
    with pytest.raises(ConfigError, match=rf"{path} is a checkpoint of another model: .*{message}"):
        check_checkpoint(path, model)


def test_adapters_of_another_rank(tmp_path):
    path = saved(tmp_path, adapted(rank=4))
    with pytest.raises(
        ConfigError, match=r"another model: its .*lora_A\.weight has the shape \(4, 32\), but here it is \(2, 32\)"
    ):
        check_checkpoint(path, adapted(rank=2))


def test_weights_in_several_files(tmp_path):
    model = llama()
    path = checkpoint(tmp_path, 1)
    model.save_pretrained(path, max_shard_size="20KB")
    files = sorted(path.glob("model-*.safetensors"))
    assert len(files) > 1
    check_checkpoint(path, model)
    with pytest.raises(ConfigError, match="another model"):
        check_checkpoint(path, llama(intermediate_size=48))
    check_complete(path)
    files[-1].unlink()
    with pytest.raises(ConfigError, match=f"{files[-1].name} is missing"):
        check_complete(path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "{"])
def test_an_index_that_names_no_weights(tmp_path, content):
    path = complete(tmp_path, 1)
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json cannot be read"):
        check_complete(path)


def test_no_weights(tmp_path):
    path = checkpoint(tmp_path, 1)
    with pytest.raises(ConfigError, match=r"holds no weights \(model\.safetensors, adapter_model\.safetensors, "):
        check_complete(path)


def test_not_complete(tmp_path):
    path = saved(tmp_path, llama())
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 1})[:-1])
    with pytest.raises(ConfigError, match=rf"{path} is not a complete checkpoint: .*trainer_state\.json"):
        check_complete(path)
