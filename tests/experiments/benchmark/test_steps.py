"""Training steps: the models, their variants, and what is measured."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from experiments.benchmark.operators.implementations import Unavailable
from experiments.benchmark.settings import settings_for
from experiments.benchmark.steps import measure as step_times
from experiments.benchmark.steps import variants
from experiments.benchmark.steps.measure import compare_variants, measure_steps
from experiments.benchmark.steps.models import CASES, build_model, make_batch
from experiments.benchmark.steps.training import Training
from experiments.benchmark.steps.variants import variants_of

CPU = torch.device("cpu")
QUICK = settings_for("cpu", None, 0, quick=True)
TINY = {case.architecture: case for case in CASES["quick"]}
each_architecture = pytest.mark.parametrize("architecture", TINY)


@pytest.mark.parametrize("kind", CASES)
def test_the_four_models_are_there(kind: str) -> None:
    assert sorted(case.architecture for case in CASES[kind]) == ["bert", "gpt2", "llama", "mistral"]


@pytest.mark.parametrize(
    ("model", "millions", "batch"),
    [
        ("gpt2", (120, 130), (8, 1024)),
        ("bert-base", (105, 115), (16, 512)),
        ("mistral-1b", (1000, 1500), (4, 2048)),
        ("llama-1b", (1000, 1500), (4, 2048)),
        ("bert-4x768", (50, 60), (8, 128)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes(model: str, millions: tuple[int, int], batch: tuple[int, int]) -> None:
    (case,) = (case for cases in CASES.values() for case in cases if case.model == model)
    built = build_model(case, torch.bfloat16, torch.device("meta"), seed=0)
    assert millions[0] <= sum(weight.numel() for weight in built.parameters()) / 1e6 <= millions[1]
    assert make_batch(case, 100, CPU, seed=0)["input_ids"].shape == batch


@each_architecture
@pytest.mark.parametrize("variant", ["inverted-eager", "fused", "checkpointing"])
def test_a_variant_is_undone(architecture: str, variant: str) -> None:
    enter = variants_of(architecture, ["eager"]).get(variant)
    if enter is None:
        assert (architecture, variant) != ("gpt2", "fused")
        return
    model = build_model(TINY[architecture], torch.float32, CPU, seed=0)
    modules = {name: (type(module), vars(module).get("forward")) for name, module in model.named_modules()}
    with enter(model):
        inside = {name: type(module) for name, module in model.named_modules()}
        assert (inside != {name: kind for name, (kind, _) in modules.items()}) == (variant != "checkpointing")
        assert is_checkpointed(model) == (variant == "checkpointing")
    assert modules == {name: (type(module), vars(module).get("forward")) for name, module in model.named_modules()}
    assert not is_checkpointed(model)


def is_checkpointed(model: PreTrainedModel) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


class Doubled:
    """Replaces Liger's MLP."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_ligers_mlp_is_taken_for_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variants, "import_liger", lambda module, name, device: Doubled)
    model = build_model(TINY["llama"], torch.float32, CPU, seed=0)
    mlp, x = model.model.layers[1].mlp, torch.randn(2, 32)
    before = mlp(x)
    with variants.liger(model):
        assert torch.equal(mlp(x), 2 * x)
    assert torch.equal(mlp(x), before)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [("gpt2", "no kernel for this MLP"), ("bert", "no kernel for this MLP"), ("llama", "need a GPU")],
)
def test_where_liger_is_unavailable(architecture: str, reason: str) -> None:
    model = build_model(TINY[architecture], torch.float32, CPU, seed=0)
    with pytest.raises(Unavailable, match=reason), variants.liger(model):
        pass


def training_of(architecture: str) -> Training:
    case = TINY[architecture]
    model = build_model(case, torch.float32, CPU, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    return Training(model, make_batch(case, model.config.vocab_size, CPU, seed=0), optimizer, seed=0)


def test_a_step_trains_and_changes_no_weight() -> None:
    training = training_of("bert")
    before = copy.deepcopy(training.model.state_dict())
    first = training.meter()["first_loss"]
    assert training.step() > 0
    assert training.meter()["first_loss"] == first  # with dropout
    moments = [state["exp_avg"] for state in training.optimizer.state.values()]
    assert any(moment.any() for moment in moments)
    torch.testing.assert_close(training.model.state_dict(), before, rtol=0, atol=0)


def measured(architecture: str = "gpt2", deadline: float = math.inf) -> dict[str, Any]:
    return measure_steps(TINY[architecture], QUICK, CPU, deadline)


def test_the_entry_of_a_model() -> None:
    entry = measured()
    variants = entry["variants"]
    assert list(variants) == ["plain", "inverted-eager", "fused", "checkpointing", "liger"]
    assert variants["liger"] == {"unavailable": "Liger has no kernel for this MLP"}
    assert entry["rounds"] == QUICK.rounds
    running = {name: facts for name, facts in variants.items() if name != "liger"}
    assert {round(facts["first_loss"], 4) for facts in running.values()} == {round(running["plain"]["first_loss"], 4)}
    assert "ratio" not in running["plain"]
    assert all(
        sorted(facts["ratio"].values()) == [facts["ratio"][key] for key in ("low", "lower", "median", "upper", "high")]
        for name, facts in running.items()
        if name != "plain"
    )
    kept = {name: facts["kept_bytes"] for name, facts in running.items()}
    assert kept["checkpointing"] < kept["inverted-eager"] < kept["fused"] < kept["plain"]


def test_no_more_than_the_least_rounds_after_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "LEAST_ROUNDS", 1)
    assert measured("llama", deadline=time.monotonic())["rounds"] == 1


@pytest.mark.parametrize("failing_step", [1, 2], ids=["when it is prepared", "in a round"])
def test_a_variant_that_fails_is_recorded_and_the_others_continue(
    monkeypatch: pytest.MonkeyPatch, failing_step: int
) -> None:
    @contextmanager
    def greedy(model: Any) -> Iterator[None]:
        model.is_greedy = True
        yield
        vars(model).pop("is_greedy", None)

    step, number = Training.step, itertools.count(1)

    def limited(training: Training) -> float:
        if vars(training.model).pop("is_greedy", False) and next(number) >= failing_step:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(training)

    monkeypatch.setattr(step_times, "variants_of", lambda *_: {"greedy": greedy, **variants_of("bert", ["eager"])})
    monkeypatch.setattr(Training, "step", limited)
    found = measured("bert")["variants"]
    assert found["greedy"] == {"unavailable": "out of memory: CUDA out of memory."}
    assert found["inverted-eager"]["ratio"]["median"] > 0


def scripted(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]], **options: Any) -> Any:
    """The results of variants whose steps take these seconds, after a first one."""
    current: list[str] = []

    @contextmanager
    def entered(name: str) -> Iterator[None]:
        current.append(name)
        yield

    remaining = {name: iter([9.0, *times]) for name, times in seconds.items()}
    monkeypatch.setattr(Training, "step", lambda training: next(remaining[current[-1]]))
    variants = {name: lambda model, name=name: entered(name) for name in seconds}
    return compare_variants(training_of("bert"), variants, rounds=3, **options)


def test_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"plain": [1.0, 2.0, 4.0], "a": [2.0, 2.0, 16.0], "b": [1.0, 3.0, 8.0]}
    rounds, found = scripted(monkeypatch, seconds, baselines={"b": "a", "a": "absent"})
    assert rounds == 3
    assert [found[name]["step_ms"] for name in seconds] == [2000.0, 2000.0, 3000.0]
    assert found["a"]["ratio"] == {"median": 2.0, "lower": 1.5, "upper": 3.0, "low": 1.0, "high": 4.0}
    assert found["b"]["ratio"]["median"] == 1.5
    assert found["b"]["ratio_to"] == {"a": {"median": 0.5, "lower": 0.5, "upper": 1.0, "low": 0.5, "high": 1.5}}
    assert "ratio_to" not in found["a"]


def test_what_is_not_caught_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(training: Training) -> float:
        raise ValueError("broken")

    monkeypatch.setattr(Training, "step", fail)
    _, found = compare_variants(training_of("bert"), {"plain": variants_of("bert", [])["plain"]}, rounds=1)
    assert found == {"plain": {"failed": "ValueError: broken"}}
    with pytest.raises(ValueError, match="broken"):
        compare_variants(training_of("bert"), {"plain": variants_of("bert", [])["plain"]}, rounds=1, catch=())
