"""What a study adds to a run: a control, another method, or comparisons of gradients during training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.finetuning.arguments import parse_run
from experiments.finetuning.run import build, finetune
from experiments.finetuning.study import nudge, nudged
from experiments.methods.catalogue import METHODS
from tests.experiments.small import losses, write_config
from tests.models import each_model, tiny_model


def train(folder: Path, model: str = "llama", **changes: Any) -> dict[str, Any]:
    return finetune(parse_run([str(write_config(folder, model, **changes))]))


@each_model
def test_one_weight_is_moved_by_one_unit_in_the_last_place(name):
    model = tiny_model(name)
    before = copy.deepcopy(model.state_dict())
    nudge(model)
    moved = {key: value for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    ((key, value),) = moved.items()
    assert "embed" not in key
    (index,) = (value != before[key]).nonzero()
    old, new = before[key][tuple(index)], value[tuple(index)]
    assert torch.nextafter(old, new) == new
    assert old.abs() == before[key].abs().max()


@each_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_is_put_back(name, dtype):
    model = tiny_model(name).to(dtype)
    before = copy.deepcopy(model.state_dict())
    with nudged(model):
        assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_control_starts_one_unit_away_and_trains_as_the_others(tmp_path):
    plain, control = train(tmp_path / "plain"), train(tmp_path / "control", nudge_weight=True)
    pairs = list(zip(losses(plain), losses(control), strict=True))
    assert all(abs(one - other) < 1e-4 for one, other in pairs)
    config = write_config(tmp_path, "llama", nudge_weight=True)
    own, usual = build(parse_run([str(config)])).model, build(parse_run([str(config), "--nudge_weight", "false"])).model
    changed = sum((one != other).sum().item() for one, other in zip(own.parameters(), usual.parameters(), strict=True))
    assert changed == 1


def test_a_method_trains_otherwise_and_an_exact_one_does_not(tmp_path):
    plain, exact, crude = (
        train(tmp_path / str(method), learning_rate=1e-2, method=method) for method in (None, "recompute", "few-bit-2")
    )
    assert losses(exact) == losses(plain)
    assert losses(crude)[0] == losses(plain)[0]  # its forward pass is PyTorch's own
    assert losses(crude)[-1] != losses(plain)[-1]
    assert crude["settings"]["study"]["method"] == "few-bit-2"


@pytest.mark.parametrize("points", [1, 2, 3])
def test_gradients_are_compared_at_points_of_the_training_which_does_not_notice(tmp_path, points):
    plain = train(tmp_path / "plain", "bert")
    checked = train(tmp_path / "checked", "bert", gradient_checks=points)
    assert losses(checked) == losses(plain)
    assert checked["eval"] == plain["eval"]
    assert checked["saved_bytes"] == plain["saved_bytes"]
    steps = {1: [0], 2: [0, 6], 3: [0, 3, 6]}[points]
    assert [(entry["step"], entry["dtype"]) for entry in checked["gradients"]] == [
        (step, dtype) for step in steps for dtype in ("fp32", "bf16")
    ]
    for entry in checked["gradients"]:
        bounds = {"fp32": (1e-16, 1e-9), "bf16": (1e-8, 1e-4)}[entry["dtype"]]
        assert bounds[0] < entry["cosine_distance"] < bounds[1]
        assert entry["cosine_distance"] == pytest.approx(entry["relative_error"] ** 2 / 2, rel=0.2)
        assert 0 <= entry["control_cosine_distance"] < bounds[1]
        assert ("plain_from_fp32" in entry) == (entry["dtype"] == "bf16")


def test_no_gradients_where_none_are_asked_for(tmp_path):
    assert train(tmp_path)["gradients"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "few-bit-5"}, f"method must be one of {', '.join(METHODS)}, got 'few-bit-5'"),
        ({"gradient_checks": -1}, "gradient_checks must be 0 or more, got -1"),
        ({"method": "mesa-8", "use_inverted_activations": True}, "need a plain training"),
        ({"gradient_checks": 2, "use_inverted_activations": True}, "need a plain training"),
    ],
    ids=["unknown-method", "negative", "method-and-inverted", "checks-and-inverted"],
)
def test_what_cannot_be_studied_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, **changes)
    assert not (tmp_path / "run").exists()
