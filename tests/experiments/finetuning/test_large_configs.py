"""The configs for a GPU of 24 GB: the peaks that they state, and training with them on a shrunken model."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import LlamaConfig, MistralConfig, PretrainedConfig

from experiments.finetuning.arguments import RunArguments, parse_run
from experiments.finetuning.run import finetune
from hf_invact.planning import Lora
from hf_invact.planning.dry_run import DryRun, dry_run
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.variants import INVERTED, PLAIN
from tests.experiments.small import MODELS, SENTENCES, losses, write_config, write_records

NAMES = ("mistral-7b-lora", "mistral-7b-qlora", "llama-8b-lora", "llama-8b-qlora")
LAYERS = 32
GIB = 2**30
CARD = 23.5  # GiB of a GPU of 24 GB that can be allocated
# nf4 with double quantization: a scale of 1 byte for 64 weights, and one of 4 bytes for 256 of these scales.
BYTES_IN_4_BITS = 0.5 + (1 + 4 / 256) / 64

each_config = pytest.mark.parametrize(
    "path", [Path("configs", f"{name}.yaml") for name in NAMES], ids=lambda path: path.stem
)


def arguments(path: Path, *options: str) -> RunArguments:
    return parse_run([str(path), "--use_cpu", *options])  # without a GPU, bf16 is refused at once


def on_the_hub(name: str | None, layers: int) -> PretrainedConfig:
    """The config that the hub has under this name, with fewer layers."""
    sizes = {"intermediate_size": 14336, "num_key_value_heads": 8, "num_hidden_layers": layers}
    configs: dict[str | None, PretrainedConfig] = {
        "mistralai/Mistral-7B-v0.1": MistralConfig(**sizes),
        "meta-llama/Llama-3.1-8B": LlamaConfig(**sizes, vocab_size=128256, max_position_embeddings=131072),
    }
    return configs[name]


@cache
def predicted(path: Path, layers: int) -> dict[str, list[float]]:
    """GiB that a step keeps, and those at its peak: with inverted activations, and without."""
    run = arguments(path)
    size = run.training.per_device_train_batch_size, run.data.max_seq_length
    setup = Setup(on_the_hub(run.model.model_name_or_path, layers), run.model.dtype, "bfloat16", adapters(run))
    with dry_run(setup) as model:
        in_4_bits = quantize_as_peft(model) if run.model.quantization else 0
        peaks, kept = [], []
        for variant in (INVERTED, PLAIN):  # one after the other, since each switch to a variant patches the model
            peaks.append(model.peak(variant, *size, "adamw_fused").total_bytes)
            kept.append(sum(model.saved(variant, *size).values()))
    return {
        "keeps": [each / GIB for each in kept],
        "peaks at": [(each - in_4_bits * (2 - BYTES_IN_4_BITS)) / GIB for each in peaks],
    }


def adapters(run: RunArguments) -> Lora:
    lora = run.model.lora
    assert isinstance(lora, dict)
    assert lora["target_modules"] == "all-linear"
    return Lora(lora["r"], lora["lora_dropout"])


def quantize_as_peft(run: DryRun) -> int:
    """Make what `peft.prepare_model_for_kbit_training` makes float32. Returns how many weights are in 4 bits then."""
    layers = [module for module in run.model.modules() if isinstance(module, BaseTunerLayer)]
    weights = {id(weight): weight.numel() for layer in layers for weight in [layer.get_base_layer().weight]}
    for module in run.model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in weights and weight.dtype == torch.bfloat16:
                setattr(module, name, nn.Parameter(weight.detach().float(), requires_grad=False))
    return sum(weights.values())


def words(path: Path) -> str:
    """The comment in one line."""
    comment = path.read_text().partition("\ntask:")[0]
    return " ".join(comment.replace("#", " ").split())


def stated(path: Path, what: str) -> list[float]:
    (found,) = re.findall(rf"{what} ([\d.]+) GiB with inverted activations and ([\d.]+) GiB without", words(path))
    return [float(each) for each in found]


@each_config
def test_the_command_plans_what_is_trained(path):
    run = arguments(path)
    lora = adapters(run)
    size = f"--batch-size {run.training.per_device_train_batch_size} --seq-len {run.data.max_seq_length}"
    options = f"--bf16 --lora r={lora.r},dropout={lora.dropout}"
    assert f"hf-invact plan {run.model.model_name_or_path} {size} {options}" in words(path)
    assert (run.training.bf16, run.model.dtype) == (True, "bfloat16")
    assert bool(run.model.quantization) == path.stem.endswith("qlora")


@pytest.mark.slow
# Each takes long, so that one of each kind is predicted again.
@pytest.mark.parametrize("path", [Path("configs/mistral-7b-lora.yaml"), Path("configs/llama-8b-qlora.yaml")], ids=str)
def test_it_states_the_predicted_peak_which_fits_with_inverted_activations(path):
    one, two = predicted(path, 1), predicted(path, 2)
    for what in one:  # all layers are alike
        all_layers = [less + (LAYERS - 1) * (more - less) for less, more in zip(one[what], two[what], strict=True)]
        assert stated(path, what) == pytest.approx(all_layers, abs=0.05)
    with_them, without = stated(path, "peaks at")
    assert with_them < CARD - 2  # what allocators lose
    assert without > CARD


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with a small model of a type and its tokenizer; the same each time."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        # Narrower layers are not supported by bitsandbytes' CPU kernel for evaluation.
        wide = {**MODELS["llama"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
        base = write_config(folder, "llama", model_type=name, model_config=wide, max_steps=1, save_strategy="steps")
        finetune(parse_run([str(base)]))
        return folder / "run"

    return make


@pytest.mark.slow
@each_config
def test_it_trains_a_shrunken_model(path, pretrained, tmp_path):
    run = arguments(path)
    if run.model.quantization:
        pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install '.[quantization]'")
    folder = pretrained(path.stem.partition("-")[0])
    columns = ("instruction", "input", "output")
    records = [dict(zip(columns, (sentence, "", sentence), strict=True)) for sentence in SENTENCES]
    values = {
        **yaml.safe_load(path.read_text()),
        **{"dataset_name": None, "train_file": write_records(tmp_path / "records.jsonl", records)},
        **{"model_name_or_path": str(folder), "max_seq_length": 16, "max_steps": 3},
        **{"max_eval_samples": 2, "use_cpu": True, "dataloader_pin_memory": False, "save_strategy": "no"},
    }
    plain, inverted = (trained(tmp_path / str(flag), values, flag) for flag in (False, True))
    assert losses(inverted) == pytest.approx(losses(plain), rel=1e-3)
    assert inverted["saved_bytes"] < plain["saved_bytes"]
    assert {site["kind"] for site in inverted["patched"] if site["curve"]} == {"adapter", "activation", "norm"}


def trained(folder: Path, values: dict[str, Any], is_inverted: bool) -> dict[str, Any]:
    folder.mkdir()
    config = folder / "config.yaml"
    values = {**values, "use_inverted_activations": is_inverted, "output_dir": str(folder / "run")}
    config.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return finetune(parse_run([str(config)]))
