"""The files for ``accelerate launch --config_file``, read by accelerate's own launcher up to the plugins they make."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from tests.versions import since_accelerate

FOLDER = Path(__file__).parents[2] / "configs" / "accelerate"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
since_fsdp2 = since_accelerate("1.6", "FSDP2")
each_config = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=since_fsdp2 if name == "fsdp2" else ()) for name in KINDS]
)


def arguments(name: str) -> argparse.Namespace:
    return launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "train.py"])


def environment(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment variables that accelerate would start each process with, set here."""
    args, config, _ = _validate_launch_command(arguments(name))
    assert args.num_processes == 8
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)  # as the launcher does next
    made = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    for key, value in made.items():
        if key.startswith(("ACCELERATE_", "FSDP_")):
            monkeypatch.setenv(key, value)
    return made


def test_every_file_is_tested() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@each_config
def test_accelerate_reads_it_and_knows_every_key(name: str) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # which refuses unknown keys, except nested ones
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type.value == KINDS[name]
    assert config.mixed_precision == "bf16"
    known = vars(arguments(name))
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= set(known)


@each_config
def test_its_command_names_the_file_and_the_flag(name: str) -> None:
    command = f"accelerate launch --config_file configs/accelerate/{name}.yaml train.py ... --bf16"
    assert f"#   {command} --use_inverted_activations\n" in (FOLDER / f"{name}.yaml").read_text()


def test_ddp_starts_processes_without_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    made = environment("ddp", monkeypatch)
    assert made["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(made)


@since_fsdp2
def test_fsdp2_makes_its_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment("fsdp2", monkeypatch)["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_makes_its_plugin(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment(f"zero{stage}", monkeypatch)["ACCELERATE_USE_DEEPSPEED"] == "true"
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is (stage == 3)
    assert plugin.deepspeed_config["zero_optimization"]["stage"] == stage
