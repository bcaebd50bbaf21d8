"""Trains every case of a table; started by torchrun in each process: ``worker.py TABLE OPTIONS OF THE TRAINER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, HfArgumentParser, PreTrainedModel, TrainerCallback
from transformers.distributed import DistributedConfig

from hf_invact import InvActConfig, InvActTrainingArguments, InvertedActivationsCallback, PatchReport, patch_model
from hf_invact.memory import SavedActivations
from tests.combinations.adapters import lora, with_adapters
from tests.models import batch, tiny_model
from tests.processes.cases import OWN_LOOP, SINCE, STEPS, TABLES, WORLD, Case, Record
from tests.trainer.helpers import is_patched, losses, make_trainer, records
from tests.versions import has_transformers


def zero(stage: int) -> list[str]:
    config: dict[str, Any] = {"zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True}
    sizes = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps")
    return ["--deepspeed", json.dumps({**config, **dict.fromkeys(sizes, "auto")})]


OPTIONS: dict[str, list[str]] = {
    "ddp-accumulation": ["--gradient_accumulation_steps", "2"],
    "fsdp-flag": ["--fsdp", "--fsdp_config", '{"version": 2}'],
    "zero2": zero(stage=2),
    "zero3": zero(stage=3),
}


def model_of(case: Case) -> Any:
    model = tiny_model(case.model)
    return with_adapters(model, lora(case.model, dropout=0.1)) if case.lora else model


def config_of(case: Case) -> InvActConfig:
    config = InvActConfig(checkpoint_layers=1 if case.checkpoints else None)
    return replace(config, sites=("adapter",)) if case.lora else config


def train(case: Case, argv: Sequence[str], folder: Path) -> Record:
    return train_by_hand(case) if case.way in OWN_LOOP else train_with_trainer(case, argv, folder)


def train_with_trainer(case: Case, argv: Sequence[str], folder: Path) -> Record:
    flag = str(case.patched != "no")
    (args,) = HfArgumentParser(InvActTrainingArguments).parse_args_into_dataclasses(
        [*argv, *OPTIONS.get(case.way, []), "--use_inverted_activations", flag]
    )
    model = load_sharded(case.model, folder) if case.way == "fsdp2-at-load" else model_of(case)
    callback, gradients = InvertedActivationsCallback(config_of(case)), Gradients()
    trainer = make_trainer(model, args, callback, gradients, data=records(STEPS * 2 * WORLD * 2))
    trainer.train()
    saved_bytes = callback.figures()["saved_activation_bytes"]
    return record(model, trainer.model_wrapped, losses(trainer), gradients.last, saved_bytes, callback.report)


def load_sharded(name: str, folder: Path) -> PreTrainedModel:
    """Transformers' own FSDP2: the model is sharded while it is loaded."""
    path = folder / name
    tiny_model(name).save_pretrained(path)  # rank 0 alone writes
    distributed.barrier()
    return AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(fsdp_size=WORLD))


class Gradients(TrainerCallback):
    """Keeps the gradients of the last step."""

    last: dict[str, Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.last = whole_gradients(model)


def train_by_hand(case: Case) -> Record:
    model, config = model_of(case), config_of(case)
    report = patch_model(model, config) if case.patched == "before" else None
    wrapped = DistributedDataParallel(model) if case.way == "own-ddp" else shard(model)
    report = patch_model(model, config) if case.patched == "after" else report
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2)
    torch.manual_seed(0)  # of dropout
    found: list[float] = []
    gradients: dict[str, Tensor] = {}
    saved_bytes = 0
    for step in range(STEPS):
        data = batch(model, seed=WORLD * step + distributed.get_rank())
        with SavedActivations(model) as saved:
            loss = wrapped(**data).loss
        saved_bytes = saved_bytes or saved.total_bytes
        loss.backward()
        gradients = whole_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / WORLD
        distributed.all_reduce(mean)
        found.append(mean.item())
    return record(model, wrapped, found, gradients, saved_bytes, report)


def shard(model: PreTrainedModel) -> nn.Module:
    """Each layer on its own, then the rest, as is usual."""
    layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for layer in layers:
        fully_shard(layer)
    return fully_shard(model)


def whole_gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {
        name: (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
        for name, gradient in found.items()
    }


def record(
    model: nn.Module,
    wrapped: nn.Module,
    found: list[float],
    gradients: dict[str, Tensor],
    saved_bytes: int,
    report: PatchReport | None,
) -> Record:
    return Record(
        world=distributed.get_world_size(),
        losses=found,
        gradients=gradients,
        saved_bytes=saved_bytes,
        report=report,
        wrapper=type(wrapped).__name__,
        shards={kind_of(parameter) for parameter in model.parameters()},
        patched_at_the_end=is_patched(model),
    )


def is_possible(case: Case) -> bool:
    return case.way not in SINCE or has_transformers(SINCE[case.way][0])


def kind_of(parameter: Tensor) -> str:
    return "DTensor" if isinstance(parameter, DTensor) else "ZeRO-3" if hasattr(parameter, "ds_id") else "whole"


def main(table: str, argv: Sequence[str]) -> None:
    folder = Path(argv[argv.index("--output_dir") + 1])
    torch.set_num_threads(1)
    if table == "deepspeed":
        import deepspeed

        deepspeed.init_distributed("gloo")
    found = {str(case): train(case, argv, folder) for case in TABLES[table] if is_possible(case)}
    torch.save(found, folder / f"rank{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
