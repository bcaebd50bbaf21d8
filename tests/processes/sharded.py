"""A small model under each way of sharding, patched and not; started by torchrun in each process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainerControl, TrainerState

from hf_invact import InvertedActivationsCallback, PatchReport, patch_model
from hf_invact.patching.report import SiteReport
from tests.models import batch, tiny_model
from tests.trainer.helpers import arguments
from tests.versions import has_transformers

SIZES: dict[str, Any] = {
    **{"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 96, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
EXPERTS = {"mixtral": {"num_local_experts": 4}, "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2}}
# The version of Transformers that introduced this kind of sharding at load.
SINCE = {"tensor parallel": "5.17", "expert parallel": "5.21"}
AT_LOAD = {
    **{f"tensor parallel, {name}": name for name in ("qwen2", "phi3", "starcoder2", "mixtral", "qwen3_moe")},
    "expert parallel, mixtral": "mixtral",
}


@dataclass(frozen=True)
class Result:
    """What one process saw.

    Attributes:
        report: of patching; None where it is not patched.
        losses: of two steps.
        saved_bytes: kept by a forward pass.
    """

    report: PatchReport | None
    losses: list[float]
    saved_bytes: int


def fresh(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SIZES, **EXPERTS.get(name, {}))).train()


def fsdp1(model: nn.Module, units: set[type[nn.Module]], **options: Any) -> nn.Module:
    policy = ModuleWrapPolicy(units)
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


def flat_lora() -> tuple[nn.Module, Callable[[nn.Module], nn.Module]]:
    """As with PEFT's policy: what is trained is a unit of its own."""
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.1)
    torch.manual_seed(0)
    return get_peft_model(tiny_model("llama"), config), lambda model: FullyShardedDataParallel(
        model,
        auto_wrap_policy=lambda module, recurse, nonwrapped_numel: recurse or is_trained_linear(module),
        device_id=torch.device("cpu"),
        use_orig_params=False,
    )


def is_trained_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and all(weight.requires_grad for weight in module.parameters())


def phi3() -> tuple[nn.Module, Callable[[nn.Module], nn.Module]]:
    """Each MLP is a unit of its own: one process has parts of both weights, the other of only one."""
    model = fresh("phi3")
    layer = model.model.layers[0]
    return model, lambda model: fsdp1(model, {type(layer), type(layer.mlp)}, use_orig_params=True)


def mixed() -> tuple[nn.Module, Callable[[nn.Module], nn.Module]]:
    model = tiny_model("llama")
    precision = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    unit = type(model.model.layers[0])
    return model, lambda model: fsdp1(model, {unit}, use_orig_params=False, mixed_precision=precision)


FSDP1 = {"FSDP1, flat LoRA": flat_lora, "FSDP1, phi3": phi3, "FSDP1, mixed precision": mixed}


def train(model: nn.Module, data: dict[str, Tensor]) -> tuple[list[float], int]:
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses: list[float] = []
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**data).loss
        saved_bytes = sum(storage.nbytes() for storage in kept.values())
        kept.clear()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, saved_bytes


def with_fsdp1(name: str, patched: str) -> Result:
    model, wrap = FSDP1[name]()
    data = batch(model, seed=distributed.get_rank())
    before = patch_model(model) if patched in ("before", "once") else None
    wrapped = wrap(model)
    report = patch_model(wrapped) if patched in ("before", "after") else before
    assert before is None or activations(before) == activations(report)
    torch.manual_seed(0)  # of dropout
    return Result(report, *train(wrapped, data))


def activations(report: PatchReport | None) -> list[SiteReport]:
    return [site for site in report.sites if site.kind == "activation"] if report else []


def at_load(way: str, patched: str, folder: Path) -> Result:
    path, options = folder / way.replace(" ", "-"), {"tp_plan": "auto"}
    if way.startswith("expert"):
        from transformers.distributed import DistributedConfig

        options = {"distributed_config": DistributedConfig(tp_size=2, ep_size=2)}
    if distributed.get_rank() == 0:
        fresh(AT_LOAD[way]).save_pretrained(path)
    distributed.barrier()
    model = AutoModelForCausalLM.from_pretrained(path, **options).train()
    report = patch_model(model) if patched != "no" else None
    return Result(report, *train(model, batch(model)))


def where_one_process_loads() -> PatchReport:
    with torch.device("cpu" if distributed.get_rank() == 0 else "meta"):
        return patch_model(tiny_model("bert"))


def by_the_callback(folder: Path) -> tuple[PatchReport | None, PatchReport | None]:
    """Patched when the Trainer is created, and again when training begins: before and after it wraps the model."""
    model = tiny_model("llama")
    callback, args = InvertedActivationsCallback(), arguments(folder, use_inverted_activations=True)
    callback.on_init_end(args, TrainerState(), TrainerControl(), model=model)
    first = callback.report
    wrapped = fsdp1(model, {type(model.model.layers[0])}, use_orig_params=True)
    callback.on_train_begin(args, TrainerState(), TrainerControl(), model=wrapped)
    return first, callback.report


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found: dict[str, Any] = {}
    for name in FSDP1:
        found |= {f"{name}, {patched}": with_fsdp1(name, patched) for patched in ("no", "once", "before", "after")}
    for way in AT_LOAD:
        if has_transformers(SINCE[way.partition(",")[0]]):
            found |= {f"{way}, {patched}": at_load(way, patched, folder) for patched in ("no", "after")}
    found["one process loads"] = where_one_process_loads()
    found["callback"] = by_the_callback(folder)
    torch.save(found, folder / f"rank{distributed.get_rank()}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    from tests.processes import sharded  # the name under which the tests find the results

    sharded.main(Path(sys.argv[1]))
