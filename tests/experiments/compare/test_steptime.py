"""Step time with and without inverted activations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from experiments.compare import steptime
from experiments.compare.steptime import TrainerSteps, measure_step_time, steps_of
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import build
from hf_invact.nn import InvertedActivation
from tests.experiments.small import contents, write_config
from tests.helpers import threads

PAIRS = 3


@pytest.fixture(scope="module", params=[False, True], ids=["flag off", "flag on"])
def measured(request, tmp_path_factory):
    """One measurement, with the model, what was installed in it, and what each step ran on."""
    folder = tmp_path_factory.mktemp("steptime")
    run = parse_run([str(write_config(folder, "bert", use_inverted_activations=request.param))])
    before, steps = contents(folder), []
    with pytest.MonkeyPatch.context() as patch, threads(1):
        experiment = build(run)
        patch.setattr(steptime, "build", lambda run: experiment)
        original, update = activations(experiment.model), TrainerSteps.update

        def watch(training, loss):
            steps.append(activations(experiment.model))
            update(training, loss)

        patch.setattr(TrainerSteps, "update", watch)
        result = measure_step_time(run, pairs=PAIRS)
    left = {path for path in contents(folder) if path not in before}
    return SimpleNamespace(result=result, model=experiment.model, original=original, steps=steps, left=left)


def activations(model):
    return [layer.intermediate.intermediate_act_fn for layer in model.bert.encoder.layer]


def test_the_ratio_is_sane(measured):
    result = measured.result
    assert result["pairs"] == PAIRS
    assert 0 < result["low"] <= result["ratio"] <= result["high"]
    assert 0.1 < result["ratio"] < 10


def test_steps_are_plain_and_patched_in_turn(measured):
    was_patched = [installed != measured.original for installed in measured.steps]
    assert was_patched == [False, True, *[False, True], *[True, False], *[False, True]]  # the first two warm up
    assert all(isinstance(module, InvertedActivation) for module in measured.steps[1])


def test_the_model_is_as_it_was(measured):
    assert activations(measured.model) == measured.original


def test_no_results_are_left(measured):
    assert measured.left <= {"run"}  # the Trainer creates the folder itself


def test_the_model_is_as_it_was_after_an_error(tmp_path, monkeypatch):
    run = parse_run([str(write_config(tmp_path, "bert"))])
    experiment = build(run)
    original, count = activations(experiment.model), 0

    def fail(*args):
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("out of memory")

    monkeypatch.setattr(steptime, "build", lambda run: experiment)
    monkeypatch.setattr(TrainerSteps, "update", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure_step_time(run)
    assert activations(experiment.model) == original


def test_a_step_is_the_trainers_own(tmp_path):
    """With the original weights, and with gradients clipped according to the arguments."""
    run = parse_run([str(write_config(tmp_path, "bert", max_grad_norm=0.01, bf16=True))])
    training, norms = steps_of(run), []
    before = [parameter.clone() for parameter in training.model.parameters()]
    step = training.optimizer.step

    def watch():
        gradients = [parameter.grad for parameter in training.model.parameters() if parameter.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        step()

    training.optimizer.step = watch
    assert training.step() > 0
    assert norms == [pytest.approx(0.01, rel=1e-3)]
    assert all(map(torch.equal, before, training.model.parameters()))
    assert training.prepared(**training.batch).logits.dtype == torch.float32  # Accelerate's, of what autocast computed
    assert training.batch["input_ids"].shape == (2, 16)
