"""One fine-tuning run, from its arguments to the results on disk."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_invact.trainer import InvertedActivationsCallback

from ..common.disk import full_disk_named
from ..common.environment import describe_environment
from ..common.errors import ConfigError, shown_as_one_line
from ..common.files import claim_folder, write_json
from ..common.locks import locked_folder
from ..common.masking import masked_text
from .arguments import PARTS, RunArguments, first_difference, parse_run
from .checkpoints.resume import check_checkpoint, check_complete, holds_weights, last_resumable_checkpoint
from .checkpoints.trained import is_trained, load_trained
from .data.metrics import perplexity
from .data.records import describe_records, load_records
from .data.tasks import PreparedTask, prepare
from .measured import MEASURED_FACTS, Measurements
from .models import build_model, load_tokenizer
from .results import RESULT, SETTINGS, divergence, read_settings
from .study import GradientChecks, nudge
from .trainer import FinetuneTrainer

TRAIN_RESULTS = "train_results.json"  # as the Trainer names it
DATA_SEED = 0  # the split of the data does not depend on the training's seed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSetup:
    """A model and its data, ready to be trained."""

    model: PreTrainedModel
    task: PreparedTask
    tokenizer: Any
    data: dict[str, Any]

    def trainer(self, training: TrainingArguments, callbacks: list[TrainerCallback]) -> FinetuneTrainer:
        """A Trainer for it."""
        return FinetuneTrainer(
            model=self.model,
            args=training,
            train_dataset=self.task.train_dataset,
            eval_dataset=self.task.eval_dataset,
            data_collator=self.task.data_collator,
            processing_class=self.tokenizer,
            compute_metrics=self.task.compute_metrics,
            preprocess_logits_for_metrics=self.task.preprocess_logits_for_metrics,
            callbacks=callbacks,
        )


def build(run: RunArguments) -> TrainingSetup:
    """Load the data and build the model, with the run's seed.

    Raises:
        ConfigError: a model, file or value of the run cannot be used.
    """
    records = load_records(run.data, DATA_SEED)
    tokenizer = load_tokenizer(run.model, run.data, records)
    task = prepare(run.data, records, tokenizer)
    set_seed(run.training.seed)
    model = build_model(run.model, run.data, task, tokenizer)
    if run.study.nudge_weight:
        nudge(model)
    info = describe_records(records)
    data = {"name": _data_name(run), "sha256": info.sha256, "python": info.python_version}
    return TrainingSetup(model, task, tokenizer, data)


def finetune(run: RunArguments, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Train, evaluate and write the results into the training arguments' `output_dir`.

    Writes what Transformers' example scripts write (train_results.json, eval_results.json, all_results.json,
    trainer_state.json, a model card, and the weights unless `save_strategy` is "no"), and ``run.json``: the losses,
    the memory figures and the settings that they belong to. An interrupted run continues from its last complete
    checkpoint. If that is the checkpoint of the last step, the run is only evaluated.

    Raises:
        ConfigError: before any training, if a model, file or value of the run cannot be used, or if another run writes
            into the same folder; later, if the disk is full.
    """
    folder = Path(str(run.training.output_dir))
    claim_folder(folder, SETTINGS)
    with locked_folder(folder), full_disk_named(folder):
        return _finetune(folder, run, callbacks)


def _finetune(folder: Path, run: RunArguments, callbacks: Sequence[TrainerCallback]) -> dict[str, Any]:
    _refuse_another_run(folder, run)
    experiment = build(run)
    checkpoint = _checkpoint(folder, run, experiment.model)
    if run.model.model_name_or_path is None:
        experiment.model.config._name_or_path = str(folder)  # otherwise the model card names an empty base model
    checks = _gradient_checks(run, experiment)
    inversion = InvertedActivationsCallback()
    measured = Measurements(inversion, checks)
    try:
        # The checks come first: the meter of the first step would count their forward passes too.
        trainer = experiment.trainer(run.training, [*checks, inversion, measured, *callbacks])
    except (ImportError, RuntimeError, ValueError) as error:  # a reporter that is not installed, nothing to invert, ...
        raise ConfigError(f"the Trainer rejects these arguments: {error}") from error
    if trainer.is_world_process_zero():
        write_json(folder / SETTINGS, run.settings())
    if checkpoint is not None:
        measured.resume_from(checkpoint)
    if checkpoint is not None and is_trained(checkpoint, run.training):
        load_trained(trainer, checkpoint)
        for check in checks:
            check.on_train_end(run.training, trainer.state, trainer.control, model=trainer.model)
    else:
        _train(trainer, run, checkpoint)
    facts = measured.facts()
    if not (folder / TRAIN_RESULTS).exists():  # the training ended in an earlier start
        trainer.save_metrics("train", {"epoch": trainer.state.epoch, "train_runtime": facts["train_seconds"]})
    eval_metrics = _evaluate(trainer, run)
    result = {
        "settings": run.settings(),
        "environment": describe_environment(),
        "data": experiment.data,
        **_model_facts(experiment.model, inversion),
        **{name: facts[name] for name in MEASURED_FACTS},
        "loss": [{"step": log["step"], "loss": log["loss"]} for log in trainer.state.log_history if "loss" in log],
        "eval": {key: value for key, value in eval_metrics.items() if _is_score(key)},
    }
    result["diverged"] = divergence(result)
    if trainer.is_world_process_zero():
        write_json(folder / RESULT, result)
    return result


def _train(trainer: FinetuneTrainer, run: RunArguments, checkpoint: Path | None) -> None:
    with run.study.applied(trainer.model):
        metrics = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None).metrics
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()


def _evaluate(trainer: FinetuneTrainer, run: RunArguments) -> dict[str, Any]:
    """Evaluate the trained model, and save it."""
    metrics: dict[str, Any] = trainer.evaluate()
    if run.data.task != "sequence-classification":
        metrics["perplexity"] = perplexity(metrics["eval_loss"])
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if run.training.save_strategy != "no":
        trainer.save_model()
    trainer.create_model_card(**_card(run))
    return metrics


def _refuse_another_run(folder: Path, run: RunArguments) -> None:
    if os.path.lexists(folder / RESULT) and run.training.resume_from_checkpoint is None:
        raise ConfigError(
            f"{folder} holds a finished run; choose another --output_dir, or remove the folder to run it again"
        )
    before = read_settings(folder)
    if before is None or not holds_weights(folder):
        return
    # With an explicit checkpoint, the training arguments may differ.
    parts = ("model", "data", "study") if run.training.resume_from_checkpoint else PARTS
    if difference := first_difference(before, run.settings(), parts):
        key, value, asked = difference
        raise ConfigError(
            f"{folder} holds checkpoints of another run: its {key} is {value!r}, but here it is {asked!r}; "
            "choose another --output_dir, or remove the folder to start over"
        )


def _checkpoint(folder: Path, run: RunArguments, model: PreTrainedModel) -> Path | None:
    asked = run.training.resume_from_checkpoint
    if asked and asked is not True:
        checkpoint: Path | None = Path(asked)
        check_complete(Path(asked))
    else:
        checkpoint = last_resumable_checkpoint(folder)
    if checkpoint is not None:
        check_checkpoint(checkpoint, model)
        logger.info("continuing from %s", checkpoint)
    return checkpoint


def _gradient_checks(run: RunArguments, experiment: TrainingSetup) -> list[GradientChecks]:
    if not run.study.gradient_checks:
        return []
    rows = range(min(run.training.per_device_eval_batch_size, len(experiment.task.eval_dataset)))
    # The collator may draw random masks. The Trainer is created later, and seeds all generators again.
    batch = experiment.task.data_collator([experiment.task.eval_dataset[row] for row in rows])
    batch = {name: tensor.to(run.training.device) for name, tensor in batch.items()}
    return [GradientChecks(run.study.gradient_checks, batch, run.training.inverted_activations())]


def _model_facts(model: PreTrainedModel, inversion: InvertedActivationsCallback) -> dict[str, Any]:
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "patched": [vars(site) for site in inversion.report.sites] if inversion.report else [],
    }


def _is_score(key: str) -> bool:
    """Whether an evaluation metric describes the model, not the speed of the evaluation."""
    return key != "epoch" and not key.endswith(("runtime", "per_second", "preparation_time"))


def _data_name(run: RunArguments) -> str:
    return masked_text(str(run.data.dataset_name or run.data.train_file))


def _card(run: RunArguments) -> dict[str, Any]:
    return {
        "finetuned_from": run.model.model_name_or_path,
        "tasks": {"causal-lm": "text-generation", "masked-lm": "fill-mask"}.get(run.data.task, "text-classification"),
        "dataset": _data_name(run),
        "tags": ["inverted-activations"] if run.training.use_inverted_activations else None,
    }


@shown_as_one_line
def main(argv: Sequence[str]) -> int:
    """The script. Returns 2, after one line, for an error that the user can fix; 1 if the training diverged."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers.utils.logging.set_verbosity_warning()
    run = parse_run(argv)
    diverged = finetune(run)["diverged"]
    if diverged:
        print(
            f"error: the training diverged: {diverged}; its results are in {run.training.output_dir}", file=sys.stderr
        )
    return 1 if diverged else 0
