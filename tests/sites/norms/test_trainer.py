"""The real Trainer with norms patched, also beside adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import HfArgumentParser, TrainerCallback

from hf_invact import InvActTrainingArguments, InvertedActivationsCallback, patch_model
from hf_invact.memory import SavedActivations
from tests.models import tiny_model
from tests.sites.norms.small import ALL, NORMED, NORMS, OUTPUT
from tests.trainer.helpers import SAVED, arguments, is_patched, losses, make_trainer, records

llama = NORMED[0]


class Generates(TrainerCallback):
    """In the middle of the training."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.eval()
        self.tokens = model.generate(input_ids=torch.tensor([[3, 4, 5]]), max_new_tokens=3, do_sample=False)
        model.train()


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"bf16": True}], ids=str)
def test_losses_generated_tokens_and_bytes(tmp_path: Path, options: dict[str, Any]) -> None:
    found = []
    for is_used in (False, True):
        callback, generates = InvertedActivationsCallback(NORMS), Generates()
        args = arguments(tmp_path, use_inverted_activations=is_used, **options)
        trainer = make_trainer(llama.model(), args, callback, generates, data=records(16))
        trainer.train()
        assert not is_patched(trainer.model)
        found.append((losses(trainer), generates.tokens.tolist(), callback.figures()[SAVED]))
    (plain, tokens, plain_bytes), (patched, patched_tokens, patched_bytes) = found
    assert patched[0] == plain[0]
    assert patched == pytest.approx(plain, rel=1e-2 if "bf16" in options else 1e-5)
    assert patched_tokens == tokens
    assert patched_bytes < 0.9 * plain_bytes


def test_the_option_of_the_command_line(tmp_path: Path) -> None:
    config = json.dumps({"sites": ["adapter", "activation", "norm"]})
    options = (
        f"--output_dir {tmp_path} --use_cpu true --max_steps 1 --report_to none --use_inverted_activations".split()
    )
    (args,) = HfArgumentParser(InvActTrainingArguments).parse_args_into_dataclasses(
        [*options, "--inverted_activations_config", config]
    )
    callback = InvertedActivationsCallback()
    make_trainer(llama.model(), args, callback).train()
    assert callback.report is not None
    assert {site.kind for site in callback.report.sites} == {"activation", "norm"}
    assert callback.report.patched == len(callback.report.sites)


def adapted(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False, **options)
    model: nn.Module = get_peft_model(tiny_model("llama").to(torch.bfloat16), config, autocast_adapter_dtype=True)
    model.enable_input_require_grads()
    return model.train()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_norms_share_what_adapters_keep(dropout: float) -> None:
    """Frozen projections keep nothing, but adapters that are patched keep their input as it comes."""
    model = adapted(lora_dropout=dropout)

    def run(sequences: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(0)
        with SavedActivations(model) as saved:
            loss = model(**llama.batch(sequences)).loss
        return loss.detach(), saved.total_bytes

    def per_token() -> float:
        return (run(4)[1] - run(2)[1]) / (2 * 8)

    plain, loss = per_token(), run(2)[0]
    report = patch_model(model, ALL)
    norms = {site.name.rpartition(".")[2]: site.plan for site in report.sites if site.kind == "norm"}
    assert (norms["input_layernorm"], norms["post_attention_layernorm"]) == (OUTPUT, OUTPUT)
    assert torch.equal(run(2)[0], loss)
    assert plain - per_token() == report.saved_bytes_per_token
