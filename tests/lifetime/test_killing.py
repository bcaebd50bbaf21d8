"""A training that is killed, as by a crash of the machine, and resumed gives the losses of one that was not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from experiments.finetuning.checkpoints.resume import last_resumable_checkpoint
from hf_invact import InvertedActivationsCallback
from tests.helpers import threads
from tests.lifetime.killed import MOMENTS
from tests.lifetime.small import MODELS, STEPS, train
from tests.trainer.helpers import losses

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.lifetime.killed", str(folder)]
    process = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    ends = [line for line in process.stdout.splitlines() if line.startswith(MODELS)]
    assert ends == [f"{name} {moment} 9" for name in MODELS for moment in MOMENTS], process.stderr
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trainer]:
    folder = tmp_path_factory.mktemp("whole")
    with threads(1):
        return {name: train(name, folder / name, InvertedActivationsCallback()) for name in MODELS}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("name", MODELS)
def test_resumes_with_the_losses_of_an_uninterrupted_training(
    name: str, moment: str, killed: Path, uninterrupted: dict[str, Trainer], tmp_path: Path
) -> None:
    checkpoint = last_resumable_checkpoint(killed / f"{name}-{moment}")
    assert checkpoint is not None
    assert checkpoint.name == ("checkpoint-4" if moment == "backward" else "checkpoint-2")
    resumed = train(name, tmp_path / "rest", InvertedActivationsCallback(), checkpoint=checkpoint)
    whole = uninterrupted[name]
    assert len(losses(whole)) == STEPS
    assert losses(resumed) == losses(whole)
    weights = whole.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in resumed.model.state_dict().items())
