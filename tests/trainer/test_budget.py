"""A memory budget in the real Trainer: planned when training begins, kept, and undone."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainerCallback

from hf_invact import InvActConfig, InvertedActivationsCallback, PatchingError, plan_budget
from hf_invact.patching.checkpoints import checkpointable_layers
from hf_invact.planning.budget.choose import budget_from_run
from hf_invact.planning.dry_run import dry_run
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.peak.storages import LiveStorages
from hf_invact.planning.peak.workspace import workspace
from hf_invact.trainer import budget
from tests.models import tiny_model
from tests.planning.small import small_model
from tests.trainer.helpers import arguments, installed_hooks, is_patched, losses, make_trainer, records

LAYERS, RECORDS, TOKENS = 4, 4, 32
MIB = 2**20


def llama() -> PreTrainedModel:
    return tiny_model("llama", num_hidden_layers=LAYERS)


def checkpointed(model: nn.Module) -> int:
    return sum(getattr(layer, "gradient_checkpointing", False) for layer in checkpointable_layers(model).values())


class Checkpoints(TrainerCallback):
    """Notes how many layers are checkpointed in each step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.counts.append(checkpointed(model))


def trained(
    folder: Path,
    memory: object,
    model: PreTrainedModel | None = None,
    data: Any = None,
    *callbacks: TrainerCallback,
    **options: Any,
) -> tuple[Trainer, InvertedActivationsCallback, Checkpoints]:
    callback, witness = InvertedActivationsCallback(), Checkpoints()
    config = options.pop("config", {}) | {"memory_budget": memory}
    args = arguments(
        folder,
        use_inverted_activations=True,
        inverted_activations_config=config,
        per_device_train_batch_size=RECORDS,
        **options,
    )
    data = records(12, TOKENS) if data is None else data
    trainer = make_trainer(model or llama(), args, callback, witness, *callbacks, data=data)
    trainer.train()
    return trainer, callback, witness


@pytest.fixture(scope="module")
def tight() -> int:
    """A budget for which some layers have to be checkpointed, but not all."""
    return int(0.93 * plan_budget(llama(), RECORDS, TOKENS, "1GiB").peak.total_bytes)


def test_as_few_layers_as_needed_are_checkpointed_while_it_trains(
    tight: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, callback, witness = trained(tmp_path, tight)
    assert callback.planned is not None
    plan = callback.planned.plan
    assert 0 < len(plan.checkpointed) < LAYERS
    assert witness.counts == [len(plan.checkpointed)] * 3
    assert callback.report == plan.report
    assert (plan.batch_size, plan.seq_len, plan.optimizer) == (RECORDS, TOKENS, "adamw_fused")
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(message == str(callback.planned) for message in messages)
    assert f"{len(plan.checkpointed)} of {LAYERS} layers checkpointed" in "".join(messages)
    assert not checkpointed(trainer.model)
    assert not is_patched(trainer.model)
    assert installed_hooks(trainer.model) == 0
    plain = make_trainer(llama(), arguments(tmp_path, per_device_train_batch_size=RECORDS), data=records(12, TOKENS))
    plain.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=1e-5)


class Peak(TrainerCallback):
    """Measures the last step, with what is there before it."""

    def __init__(self) -> None:
        self.storages = LiveStorages(workspace)
        self.bytes = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.storages.__enter__()
            states = kwargs["optimizer"].state.values()
            there = [*kwargs["model"].parameters(), *kwargs["model"].buffers()]
            there += [value for each in states for value in each.values() if isinstance(value, torch.Tensor)]
            self.storages.mark(there, "before")
            self.storages.begin("step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            self.storages.__exit__(None, None, None)
            self.bytes = sum(self.storages.peak("step").values())


@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_of_the_trainer_needs_what_is_planned(bf16: bool, tight: int, tmp_path: Path) -> None:
    peak = Peak()
    data = records(12, TOKENS)
    for record in data:
        record["attention_mask"] = torch.tensor([1] * (TOKENS - 1) + [0])
    _, callback, _ = trained(tmp_path, tight, None, data, peak, bf16=bf16, max_grad_norm=0)
    assert callback.planned is not None
    plan = callback.planned.plan
    assert len(plan.checkpointed) > 0
    # The batch, which is there before the step begins, is not measured.
    assert peak.bytes == pytest.approx(plan.peak.total_bytes, rel=0.005)
    assert peak.bytes <= plan.peak.total_bytes <= tight


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name has changed in Transformers 5.23
def test_it_replaces_the_checkpointing_of_all_layers(
    tight: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, callback, witness = trained(tmp_path, tight, gradient_checkpointing=True)
    assert callback.planned is not None
    assert witness.counts == [len(callback.planned.plan.checkpointed)] * 3
    assert witness.counts[0] < LAYERS
    assert f"in place of all {LAYERS}, which gradient_checkpointing asks for" in caplog.text
    assert checkpointed(trainer.model) == LAYERS  # as the Trainer leaves it


def test_layers_by_hand(tmp_path: Path) -> None:
    callback, witness = InvertedActivationsCallback(), Checkpoints()
    args = arguments(tmp_path, use_inverted_activations=True, inverted_activations_config={"checkpoint_layers": 3})
    trainer = make_trainer(llama(), args, callback, witness)
    trainer.train()
    assert witness.counts == [3] * 3
    assert callback.planned is None
    outcome = json.loads((tmp_path / "inverted_activations.json").read_text())
    assert "3 of 4 layers checkpointed" in outcome["summary"]
    assert not checkpointed(trainer.model)


@pytest.mark.slow
def test_layers_by_hand_under_torch_compile(tmp_path: Path) -> None:
    found = []
    for count in (None, 1):
        config = {} if count is None else {"checkpoint_layers": count}
        args = arguments(
            tmp_path,
            torch_compile=True,
            use_inverted_activations=count is not None,
            inverted_activations_config=config,
        )
        callback = InvertedActivationsCallback()
        trainer = make_trainer(tiny_model("llama"), args, callback)
        trainer.train()
        found.append(losses(trainer))
        torch._dynamo.reset()
    assert callback.report is not None
    assert len(callback.report.checkpointed) == 1
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_what_accumulates_needs_more(tight: int, tmp_path: Path) -> None:
    _, once, _ = trained(tmp_path, tight)
    _, several, _ = trained(tmp_path, tight, gradient_accumulation_steps=2)
    assert once.planned is not None
    assert several.planned is not None
    assert several.planned.plan.accumulates
    assert len(several.planned.plan.checkpointed) >= len(once.planned.plan.checkpointed)


def test_it_is_refused_before_the_first_step(tmp_path: Path) -> None:
    model = llama()
    with pytest.raises(PatchingError, match=r"memory_budget='100KB': a batch of 4 x 32 does not fit into 97.66 KiB"):
        trained(tmp_path, "100KB", model)
    assert not is_patched(model)


@pytest.mark.parametrize("memory", ["auto", "80%"])
def test_a_part_of_a_gpu_is_refused_without_one(memory: str, tmp_path: Path) -> None:
    with pytest.raises(PatchingError, match=f"memory_budget='{memory}': .* needs a GPU, and the model is on cpu"):
        trained(tmp_path, memory)


class Stream(torch.utils.data.IterableDataset[Any]):
    """Examples whose lengths nobody knows."""

    def __iter__(self) -> Any:
        yield from records(12, TOKENS)


def test_the_length_has_to_be_known(tmp_path: Path) -> None:
    with pytest.raises(PatchingError, match="it is unknown how long the sequences are at most"):
        trained(tmp_path, "1GiB", data=Stream())
    _, callback, _ = trained(tmp_path, "1GiB", data=Stream(), config={"seq_len": 48})
    assert callback.planned is not None
    assert callback.planned.plan.seq_len == 48
    assert "sequences of 48 tokens: given as seq_len" in str(callback.planned)


def test_a_longer_batch_than_planned_gets_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tmp_path, "1GiB", config={"seq_len": TOKENS - 1})
    found = [
        record.getMessage() for record in caplog.records if "is larger than the planned one" in record.getMessage()
    ]
    assert len(found) == 1
    assert found[0].startswith("a batch of 4 x 32 is larger than the planned one of 4 x 31, so the memory budget")


def test_the_measured_peak_is_logged_beside_the_predicted_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only a GPU's peak is measured.
    monkeypatch.setattr("hf_invact.trainer.callback.peak_bytes", lambda: {"peak_cuda_allocated_bytes": 30 * MIB})
    _, callback, _ = trained(tmp_path, 40 * MIB)
    assert callback.planned is not None
    line = budget.compare_peaks(callback.planned, 30 * MIB)
    assert caplog.text.count(line) == 1
    assert line.startswith("peak memory of the first 3 steps: 30.00 MiB measured, ")
    assert line.endswith("40.00 MiB allowed")


def test_batches_of_several_sequences_may_be_padded(tmp_path: Path) -> None:
    _, callback, _ = trained(tmp_path / "some", "1GiB", max_steps=1)
    assert "some tokens are padding" in str(callback.planned).lower()
    alone = arguments(tmp_path / "alone", per_device_train_batch_size=1)
    planned = budget.plan_training(llama(), InvActConfig(memory_budget="1GiB", seq_len=TOKENS), alone, {})
    assert "padding" not in str(planned)
    packed = arguments(tmp_path / "packed", per_device_train_batch_size=RECORDS)
    packed.packing = True  # as TRL's arguments have it
    planned = budget.plan_training(llama(), InvActConfig(memory_budget="1GiB", seq_len=TOKENS), packed, {})
    assert "padding" not in str(planned)


def test_images_have_no_length(tmp_path: Path) -> None:
    model = small_model("vit")
    data = [{"pixel_values": torch.rand(3, 32, 32), "labels": torch.tensor(0)} for _ in range(8)]
    _, callback, _ = trained(tmp_path, "1GiB", model, data)
    assert callback.planned is not None
    assert callback.planned.length is None


def test_a_collator_that_pads_to_a_length(tmp_path: Path) -> None:
    from hf_invact.trainer.batches import longest_sequence

    class Loader:
        dataset = records(2, 13)
        collate_fn: Any = None

    loader = Loader()
    assert longest_sequence(None, {"train_dataloader": loader}, None) == (13, "the longest of the training data")
    loader.collate_fn = DataCollatorWithPadding(None, pad_to_multiple_of=8)  # type: ignore[arg-type]
    assert longest_sequence(None, {"train_dataloader": loader}, None) == (16, "the longest of the training data")
    loader.collate_fn = DataCollatorWithPadding(None, padding="max_length", max_length=64)  # type: ignore[arg-type]
    assert longest_sequence(None, {"train_dataloader": loader}, None) == (64, "the collator's max_length")


def test_sharded_weights_are_refused_since_whole_ones_would_be_planned() -> None:
    model = llama()
    model.lm_head.to_empty(device="meta")
    with pytest.raises(PatchingError, match=r"the weights are sharded.* Choose the layers by hand: checkpoint_layers"):
        budget.plan_training(model, InvActConfig(memory_budget="1GiB"), None, {})


def test_what_else_is_held_is_left_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    with dry_run(Setup(model)) as run:
        plans = [budget_from_run(run, RECORDS, TOKENS, MIB * 8, other_bytes=each) for each in (0, MIB)]
        # On a GPU: of all that is allocated, the model's own weights are planned.
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * MIB)
        weights = sum(weight.numel() * 4 for weight in model.parameters())
        buffers = sum(buffer.numel() * 4 for buffer in model.buffers())
        others = budget._held_by_others(run.model, torch.device("cuda"))
        assert others == 5 * MIB - weights - buffers
        assert budget._held_by_others(run.model, torch.device("cpu")) == 0
    assert [plan.reserve_bytes for plan in plans] == [0, MIB]


def test_several_processes_hold_copies_of_the_gradients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, config = llama(), InvActConfig(memory_budget="1GiB", seq_len=TOKENS)
    args = arguments(tmp_path)
    alone = budget.plan_training(model, config, args, {})
    monkeypatch.setattr(type(args), "world_size", 2)
    together = budget.plan_training(model, config, args, {})
    gradients = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    assert together.plan.reserve_bytes - alone.plan.reserve_bytes == gradients
