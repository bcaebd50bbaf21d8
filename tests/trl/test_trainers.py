"""Supervised fine-tuning and preference optimisation learn the same and keep less."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig
from transformers import Trainer
from trl import SFTConfig, TrlParser
from trl.models import activation_offloading
from trl.trainer import sft_trainer

from hf_invact import InvActArgumentsMixin, InvActConfig, InvertedActivationsCallback, MemoryCallback
from hf_invact.launch import main
from hf_invact.launch.flags import Flags
from hf_invact.launch.trainers import flags_applied
from tests.compatibility import Matrix, patched_sites
from tests.trainer.helpers import SAVED, Witness, is_patched, losses, training_logs
from tests.trl.small import dpo, sft

ADAPTER = LoraConfig(r=4, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
NO_REFERENCE: dict[str, Any] = {"has_reference": False}


@pytest.fixture(autouse=True, scope="module")
def no_progress_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def trained(trainer: Trainer) -> Trainer:
    trainer.train()
    assert not is_patched(trainer.model)
    return trainer


def assert_learned_the_same(inverted: Trainer, plain: Trainer, tolerance: float = 1e-5) -> None:
    assert len(losses(plain)) == 3
    assert len(set(losses(plain))) == 3, "nothing was learned"
    assert losses(inverted)[0] == losses(plain)[0]
    assert losses(inverted) == pytest.approx(losses(plain), rel=tolerance)
    norms = [[entry["grad_norm"] for entry in training_logs(trainer)] for trainer in (inverted, plain)]
    assert min(norms[1]) > 0
    assert norms[0] == pytest.approx(norms[1], rel=tolerance)


def kept(trainer: Trainer) -> int:
    figures = {entry[SAVED] for entry in training_logs(trainer)}
    assert len(figures) == 1
    return figures.pop()


CASES: dict[str, tuple[Callable[..., Trainer], dict[str, Any], float]] = {
    "SFTTrainer": (sft, {}, 1e-5),
    "SFTTrainer, packed": (
        *(sft, {"assistant_only_loss": False, "packing": True, "packing_strategy": "wrapped"}),
        1e-5,
    ),
    "SFTTrainer, `bf16=True`": (sft, {"bf16": True}, 2e-2),
    "SFTTrainer, LoRA": (sft, {"peft_config": ADAPTER}, 1e-5),
    "SFTTrainer, LoRA with dropout": (sft, {"peft_config": replace(ADAPTER, lora_dropout=0.1)}, 1e-5),
    "DPOTrainer": (dpo, {}, 1e-4),
    "DPOTrainer, reference precomputed": (dpo, {**NO_REFERENCE, "precompute_ref_log_probs": True}, 1e-4),
    "DPOTrainer, LoRA": (dpo, {**NO_REFERENCE, "peft_config": ADAPTER}, 1e-4),
}


@pytest.mark.parametrize("name", CASES)
def test_keeps_less_and_learns_the_same(name: str, tmp_path: Path, matrix: Matrix) -> None:
    make, options, tolerance = CASES[name]
    plain = trained(make(tmp_path, MemoryCallback(), **options))
    witness, callback = Witness(), InvertedActivationsCallback()
    inverted = trained(make(tmp_path, callback, witness, **options))
    assert witness.patched["step"] == [True] * 3
    assert_learned_the_same(inverted, plain, tolerance)
    assert kept(inverted) < 0.9 * kept(plain)
    with flags_applied(Flags(use=True)):
        launched = trained(make(tmp_path, **options))
    assert losses(launched) == losses(inverted)
    assert kept(launched) == kept(inverted)
    assert callback.report
    sizes = {"plain_bytes": kept(plain), "patched_bytes": kept(inverted)}
    matrix.record("Other libraries", f"TRL's {name}", "llama", **sizes, **patched_sites(callback.report))


@pytest.mark.parametrize("make", [sft, dpo], ids=["SFT", "DPO"])
def test_gradient_checkpointing_as_trl_turns_it_on(make: Callable[..., Trainer], tmp_path: Path) -> None:
    options = {"gradient_checkpointing": True}
    plain = trained(make(tmp_path, MemoryCallback(), **options))
    inverted = trained(make(tmp_path, InvertedActivationsCallback(), **options))
    assert_learned_the_same(inverted, plain, 1e-4)
    assert 0.8 * kept(plain) < kept(inverted) < kept(plain), "the last norm alone is not recomputed"


@pytest.mark.parametrize(("make", "sequences"), [(sft, 2), (dpo, 4)], ids=["SFT", "DPO"])
def test_a_memory_budget_plans_for_the_longest_sequences(
    make: Callable[..., Trainer], sequences: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = InvertedActivationsCallback(InvActConfig(memory_budget="1GiB"))
    trained(make(tmp_path, callback, gradient_checkpointing=True))
    assert callback.planned is not None
    plan = callback.planned.plan
    assert (plan.batch_size, plan.seq_len, plan.layers) == (sequences, 32, 2)
    assert callback.planned.length == (32, "the training arguments' max_length")
    assert "is larger than the planned one" not in caplog.text


def test_the_reference_model_is_left_alone(tmp_path: Path) -> None:
    class LookAtReference(MemoryCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            patched.append((is_patched(trainer.model), is_patched(trainer.ref_model)))

    patched: list[tuple[bool, bool]] = []
    trainer = dpo(tmp_path, InvertedActivationsCallback(), LookAtReference())
    before = {name: value.clone() for name, value in trainer.ref_model.state_dict().items()}
    trained(trainer)
    assert patched == [(True, False)] * 3
    after = trainer.ref_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@dataclass
class Arguments(InvActArgumentsMixin, SFTConfig):
    """What the README shows."""


@pytest.mark.parametrize("flag", [False, True], ids=["off", "on"])
def test_the_flag_mixed_into_its_config(flag: bool, tmp_path: Path) -> None:
    witness, callback = Witness(), InvertedActivationsCallback()
    config = {"exclude": ["*.0.mlp"]}
    options = {"use_inverted_activations": flag, "inverted_activations_config": config}
    trained(sft(tmp_path, callback, witness, cls=Arguments, **options))
    assert witness.patched["step"] == [flag] * 3
    left_alone = [site.name for site in callback.report.sites if not site.is_patched] if callback.report else []
    assert left_alone == ["model.layers.0.mlp.act_fn"] * flag


def test_the_flag_in_trls_own_parser(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text('use_inverted_activations: true\ninverted_activations_config: \'{"backend": "eager"}\'\n')
    command = ["--config", str(path), "--output_dir", str(tmp_path), "--bf16", "false"]
    (args,) = TrlParser(Arguments).parse_args_and_config(command)
    assert args.use_inverted_activations is True
    assert args.inverted_activations() == InvActConfig(backend="eager")
    assert isinstance(args, SFTConfig)
    with flags_applied(Flags(use=False, written={"--use_inverted_activations": ("false",)})):
        (args,) = TrlParser(Arguments).parse_args_and_config(command)
    assert args.use_inverted_activations is False


# On a CPU there is nothing to offload from. TRL does not check this, and fails with or without inverted activations.
@pytest.mark.skipif(torch.accelerator.is_available(), reason="for a machine without an accelerator")
@pytest.mark.parametrize("callbacks", [[], [InvertedActivationsCallback()]], ids=["plain", "inverted"])
def test_trls_offloading_fails_on_a_cpu(callbacks: list[Any], tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'type'"):
        sft(tmp_path, *callbacks, activation_offloading=True)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the next test covers an accelerator")
def test_offloading_with_the_cpu_named_as_the_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's own code packs and unpacks every tensor; what a CPU lacks (streams, pinned memory) is turned off."""
    # TRL calls it once bitsandbytes is imported.
    monkeypatch.setattr(torch.cpu, "empty_cache", lambda: None, raising=False)
    on_a_cpu = {"use_pin_memory": False, "use_streams": False}
    make_manager = functools.partial(activation_offloading.get_act_offloading_ctx_manager, **on_a_cpu)
    monkeypatch.setattr(sft_trainer, "get_act_offloading_ctx_manager", make_manager)

    def train(callback: MemoryCallback) -> tuple[Trainer, list[int]]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))
            trainer = sft(tmp_path, callback, activation_offloading=True)
        manager, offloaded = trainer.maybe_activation_offload_context, list[int]()
        pack = manager.pack_hook

        def count(tensor: torch.Tensor) -> int:
            name = pack(tensor)
            stored, is_offloaded, *_ = manager.tracker[name]
            offloaded[-1] += stored.nbytes if is_offloaded else 0
            return name

        manager.pack_hook = count
        step = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
            offloaded.append(0)
            return step(*args, **kwargs)

        trainer.training_step = training_step
        return trained(trainer), offloaded

    plain, all_offloaded = train(MemoryCallback())
    inverted, fewer_offloaded = train(InvertedActivationsCallback())
    assert_learned_the_same(inverted, plain)
    assert losses(plain) == losses(trained(sft(tmp_path)))
    assert len(all_offloaded) == len(fewer_offloaded) == 3
    # Without streams a tensor that two operations save is copied twice, so less is saved than without offloading.
    assert all(0 < few < 0.92 * many for few, many in zip(fewer_offloaded, all_offloaded, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_from_an_accelerator(tmp_path: Path) -> None:
    options = {"use_cpu": False, "activation_offloading": True}
    plain = trained(sft(tmp_path, MemoryCallback(), **options))
    inverted = trained(sft(tmp_path, InvertedActivationsCallback(), **options))
    assert losses(inverted) == pytest.approx(losses(plain), rel=1e-3)


SCRIPT = """
import json
from trl import SFTConfig, TrlParser
from tests.trl.small import sft, OPTIONS

if __name__ == "__main__":
    (args,) = TrlParser(SFTConfig).parse_args_and_config()
    trainer = sft(args.output_dir, max_steps=args.max_steps)
    trainer.train()
    with open(args.output_dir + "/log.json", "w") as file:
        json.dump(trainer.state.log_history, file)
"""


def test_a_script_with_trls_parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "run.yaml").write_text("max_steps: 2\nuse_cpu: true\nbf16: false\n")
    command = [str(tmp_path / "train.py"), "--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path)]
    logs = []
    for flag in ([], ["--use_inverted_activations"]):
        main([*command, *flag])
        logs.append([entry for entry in json.loads((tmp_path / "log.json").read_text()) if "loss" in entry])
    plain, inverted = logs
    assert [entry["loss"] for entry in inverted] == pytest.approx([entry["loss"] for entry in plain], rel=1e-5)
    assert [len(plain), SAVED in plain[0], SAVED in inverted[0]] == [2, False, True]
