"""The metrics, compared with values that were computed by hand."""

import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from experiments.finetuning.data.metrics import F1, Accuracy, ClassificationMetrics, perplexity


def test_they_are_metrics_of_the_evaluate_library():
    assert isinstance(Accuracy(), evaluate.Metric)
    assert isinstance(F1(), evaluate.Metric)


def test_two_classes_by_hand():
    # Class 1: 2 found, 1 false alarm, 1 missed. Class 0: 1 found, 1 false alarm, 1 missed.
    scores = ClassificationMetrics(2)(EvalPrediction(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0])))
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": 4 / 6, "f1_macro": (4 / 6 + 2 / 4) / 2})


def test_three_classes_by_hand():
    # Class 0 is perfect, class 1 is found once and missed once, class 2 has one false alarm and no record.
    scores = ClassificationMetrics(4)(EvalPrediction(np.array([0, 1, 2]), np.array([0, 1, 1])))
    assert scores == pytest.approx({"accuracy": 2 / 3, "f1_macro": (1 + 2 / 3 + 0) / 3})


def test_f1_of_a_class_that_never_occurs_is_zero():
    assert F1().compute(predictions=[0, 0], references=[0, 0], num_classes=2) == {"f1_macro": 1.0, "f1": 0.0}


def test_a_metric_starts_afresh_with_each_evaluation():
    accuracy = Accuracy()
    assert accuracy.compute(predictions=[0, 1], references=[1, 0]) == {"accuracy": 0.0}
    assert accuracy.compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0}


def test_nothing_is_written_to_the_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    ClassificationMetrics(2)(EvalPrediction(np.array([0, 1]), np.array([0, 1])))
    assert not (tmp_path / "metrics").exists()


def score_many(number: int) -> list[float]:
    metric = Accuracy()
    return [
        metric.compute(predictions=[number] * 4, references=[number] * n + [-1] * (4 - n))["accuracy"] for n in range(5)
    ]


def test_two_processes_do_not_meet():
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(score_many, range(2))) == [[0.0, 0.25, 0.5, 0.75, 1.0]] * 2


@pytest.mark.parametrize(
    ("loss", "expected"), [(0.0, 1.0), (math.log(50.0), 50.0), (1000.0, math.inf), (math.inf, math.inf)]
)
def test_perplexity(loss, expected):
    assert perplexity(loss) == pytest.approx(expected)


def test_perplexity_of_a_loss_that_is_no_number():
    assert math.isnan(perplexity(math.nan))
