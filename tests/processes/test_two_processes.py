"""Every case of the table, in two real processes: losses and gradients as unpatched, fewer bytes in each process."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import pytest
import torch

from hf_invact.sites.adapters.kind import ADAPTER_INPUT
from hf_invact.sites.norms.plans import OUTPUT
from tests.compatibility import Matrix, patched_sites
from tests.patching.weights.test_fake_copy import COPIED, RULES
from tests.processes.cases import (
    CASES,
    CHECKPOINTED,
    DEEPSPEED_CASES,
    ROWS,
    SHARDED_BY_FSDP2,
    SINCE,
    STEPS,
    WORLD,
    Case,
    Record,
)
from tests.processes.launch import launch
from tests.versions import since_transformers

LEFT_ALONE = "left alone: ZeRO-3 gathers its weights by hooks that need the tensor that the adapter is given"
WORKER = Path(__file__).with_name("worker.py")
NORM_LEFT_ALONE = "left alone: ZeRO-3 has sharded its weights, so it cannot be run"
# Of BERT's norms, two are left alone: the embeddings' one is followed by a dropout, and the head's output is not kept.
NORMS = {"gpt2": 5, "bert": 4, "mistral": 5, "llama": 5}
SHARDED_FIRST = "Weights are sharded before the model is patched, so plans are measured on a copy."

# DeepSpeed looks for ninja there, which pip installs beside Python.
SEARCHED = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

Records: TypeAlias = list[dict[str, Record]]  # by process

pytestmark = pytest.mark.slow


def train(table: str, folder: Path) -> Records:
    """Train a table's cases in processes of their own; all in one start, since that takes most of the time."""
    options = (
        *("--output_dir", str(folder), "--use_cpu", "true", "--ddp_backend", "gloo", "--max_steps", str(STEPS)),
        *("--per_device_train_batch_size", "2", "--learning_rate", "1e-2", "--logging_steps", "1"),
        *("--save_strategy", "no", "--report_to", "none", "--disable_tqdm", "true"),
    )
    return launch(WORKER, folder, table, *options)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return train("torch", tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="module")
def found_by_deepspeed(tmp_path_factory: pytest.TempPathFactory) -> Records:
    if find_spec("deepspeed") is None or shutil.which("ninja", path=SEARCHED) is None or shutil.which("c++") is None:
        pytest.skip("needs DeepSpeed, a C++ compiler and ninja")
    return train("deepspeed", tmp_path_factory.mktemp("deepspeed"))


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(case, id=str(case), marks=marks(case)) for case in cases])


def marks(case: Case) -> list[pytest.MarkDecorator]:
    return [since_transformers(*SINCE[case.way])] if case.way in SINCE else []


PATCHED = [case for case in CASES if case.patched != "no"]


@each(CASES)
def test_each_case_trains_what_its_name_says(case: Case, found: Records) -> None:
    """Accelerate silently falls back from FSDP to DDP on a CPU, so sharded cases must really be sharded."""
    for record in (records[str(case)] for records in found):
        assert record.world == WORLD
        is_sharded = case.way in SHARDED_BY_FSDP2
        assert record.shards == ({"DTensor"} if is_sharded else {"whole"})
        assert record.wrapper.startswith("FSDP" if is_sharded else "DistributedDataParallel")


@each(CASES)
def test_the_processes_agree(case: Case, found: Records) -> None:
    first, second = (records[str(case)] for records in found)
    assert len(first.losses) == STEPS
    assert second.losses == first.losses
    torch.testing.assert_close(second.gradients, first.gradients, rtol=0, atol=0)
    assert second.report == first.report


@each(PATCHED)
def test_losses_gradients_and_bytes(case: Case, found: Records) -> None:
    for rank, (plain, patched) in pairs(case, found):
        assert patched.saved_bytes < 0.95 * plain.saved_bytes, rank
        if case.lora:
            assert patched.losses == plain.losses, rank
            torch.testing.assert_close(patched.gradients, plain.gradients, rtol=0, atol=0)
            continue
        is_fused = case.model != "gpt2"  # whose formula is unfused, so the last digit may differ
        assert patched.losses[0] == pytest.approx(plain.losses[0], rel=0 if is_fused else 5e-7, abs=0), rank
        assert patched.losses == pytest.approx(plain.losses, rel=1e-5), rank
        assert patched.gradients.keys() == plain.gradients.keys()
        assert len(plain.gradients) > 20
        for name, gradient in plain.gradients.items():
            distance = (patched.gradients[name] - gradient).norm()
            assert distance <= 2e-3 * gradient.norm() + 1e-6, (rank, name)


@each(PATCHED)
def test_plans_are_measured_on_whole_weights_and_on_a_copy_of_sharded_ones(case: Case, found: Records) -> None:
    measured = [plan or "output" for plan in RULES[case.model]]  # BERT's head, for which there is no rule, as well
    for records in found:
        plans = records[str(case)].plans_of("adapter", "activation")
        expected = [ADAPTER_INPUT.name] * len(plans) if case.lora else measured
        assert plans == [(plan, COPIED if is_copied(case) else "") for plan in expected]
        of_norms = records[str(case)].plans_of("norm")
        assert Counter(plan for plan, _ in of_norms)[OUTPUT.name] == (0 if case.lora else NORMS[case.model])
        assert all((COPIED in why) == is_copied(case) for _, why in of_norms)


@each(CHECKPOINTED)
def test_a_layer_is_checkpointed_in_each_process(case: Case, found: Records) -> None:
    without = str(dataclasses.replace(case, checkpoints=False))
    for rank, (plain, patched) in pairs(case, found):
        assert patched.report is not None
        assert (len(patched.report.checkpointed), patched.report.layers) == (1, 2)
        assert patched.saved_bytes < found[rank][without].saved_bytes, rank
        assert patched.losses == (plain.losses if case.lora else pytest.approx(plain.losses, rel=1e-5)), rank
        assert patched.losses == found[0][str(case)].losses
        torch.testing.assert_close(patched.gradients, found[0][str(case)].gradients, rtol=0, atol=0)


@each([case for case in PATCHED if case.way in ROWS])
def test_the_results_are_those_of_the_matrix(case: Case, found: Records, matrix: Matrix) -> None:
    record(case, found, matrix)


def record(case: Case, found: Records, matrix: Matrix) -> None:
    _, (plain, patched) = next(pairs(case, found))
    matrix.record(
        *("Processes", case.row, case.model),
        plain_bytes=plain.saved_bytes,
        patched_bytes=patched.saved_bytes,
        **patched_sites(patched.report),
        note=SHARDED_FIRST if is_copied(case) else "",
    )


@since_transformers(*SINCE["fsdp2-at-load"])
def test_what_sharding_gathers_does_not_count(found: Records) -> None:
    sizes = {found[rank][f"{way}-llama-no"].saved_bytes for way in ("ddp", "fsdp2-at-load") for rank in range(WORLD)}
    assert len(sizes) == 1


@each([case for case in CASES if not case.way.startswith("own")])
def test_the_trainer_leaves_the_model_unpatched(case: Case, found: Records) -> None:
    assert not any(records[str(case)].patched_at_the_end for records in found)


@each(DEEPSPEED_CASES)
def test_deepspeed(case: Case, found_by_deepspeed: Records, matrix: Matrix) -> None:
    is_sharded, is_left_alone = is_copied(case), case.lora and case.way == "zero3"
    for rank, (plain, patched) in pairs(case, found_by_deepspeed):
        assert (patched.wrapper, patched.world) == ("DeepSpeedEngine", WORLD)
        assert patched.shards == ({"ZeRO-3"} if is_sharded else {"whole"})
        assert patched.losses == (plain.losses if case.lora else pytest.approx(plain.losses, rel=1e-5)), rank
        if case.patched == "no":
            continue
        assert patched.saved_bytes <= (1 if is_left_alone else 0.95) * plain.saved_bytes, rank
        why = LEFT_ALONE if is_left_alone else COPIED if is_sharded else ""
        assert {each for _, each in patched.plans_of("adapter", "activation")} == {why}
        of_norms = {each for _, each in patched.plans_of("norm")}
        assert of_norms <= ({NORM_LEFT_ALONE} if is_sharded else {"", "left alone: nothing would keep less"})
        assert not patched.patched_at_the_end
        record(case, found_by_deepspeed, matrix)


def is_copied(case: Case) -> bool:
    """Whether weights are sharded when it is patched."""
    return case.way == "zero3" or (case.way in SHARDED_BY_FSDP2 and case.patched == "after")


def pairs(case: Case, found: Records) -> Iterator[tuple[int, tuple[Record, Record]]]:
    """What each process saw, without the patch and with it."""
    for rank, records in enumerate(found):
        yield rank, (records[str(case.plain)], records[str(case)])
