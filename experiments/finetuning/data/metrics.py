"""Metrics that work offline. (`evaluate.load` would download their code from the hub.)"""

from __future__ import annotations

import math
import tempfile

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction


class _ClassMetric(evaluate.Metric):
    """Compares predicted with true class numbers, arrays of shape (records,).

    By default, `evaluate` collects both in files of a shared cache. These stay in memory, so that several processes
    cannot conflict.
    """

    summary = ""

    def __init__(self) -> None:
        # `evaluate` creates the folder even if it never writes to it.
        with tempfile.TemporaryDirectory() as unused:
            super().__init__(cache_dir=unused, keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=self.summary,
            citation="",
            inputs_description="predictions and references: class numbers, one per record.",
            features=datasets.Features({"predictions": number, "references": number}),
            format="numpy",
        )


class Accuracy(_ClassMetric):
    """Share of records whose class is right, in [0, 1]."""

    summary = "Share of records whose class is right."

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": float(np.mean(predictions == references))}


class F1(_ClassMetric):
    """Harmonic mean of precision and recall, in [0, 1].

    `f1_macro` is the mean over the classes that occur as a prediction or reference. With `num_classes=2` there is also
    `f1`, the score of class 1, as GLUE reports it for MRPC.
    """

    summary = "Harmonic mean of precision and recall."

    def _compute(self, predictions: np.ndarray, references: np.ndarray, num_classes: int) -> dict[str, float]:
        present = np.union1d(predictions, references)
        scores = {"f1_macro": float(np.mean([_f1(predictions, references, number) for number in present]))}
        if num_classes == 2:
            scores["f1"] = _f1(predictions, references, 1)
        return scores


class ClassificationMetrics:
    """`compute_metrics` for predicted class numbers: accuracy, macro F1, and F1 where there are two classes."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.accuracy = Accuracy()
        self.f1 = F1()

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        numbers = {"predictions": prediction.predictions, "references": prediction.label_ids}
        scores: dict[str, float] = self.accuracy.compute(**numbers) | self.f1.compute(
            **numbers, num_classes=self.num_classes
        )
        return scores


def perplexity(loss: float) -> float:
    """exp(loss) of a mean cross-entropy in nats; infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _f1(predictions: np.ndarray, references: np.ndarray, number: int) -> float:
    predicted, true = predictions == number, references == number
    total = predicted.sum() + true.sum()
    return float(2 * (predicted & true).sum() / total) if total else 0.0
