"""Layers with adapters that keep no less by themselves, but the input itself, which what makes it can share."""

from __future__ import annotations

import peft
import pytest
import torch

from hf_invact import InvActConfig, PatchReport, patch_model
from hf_invact.memory import SavedActivations
from hf_invact.patching.decisions import together
from hf_invact.patching.probing.compare import Again
from hf_invact.patching.probing.probe import Measurement, Scope
from hf_invact.sites.adapters import AdapterInputs
from tests.models import WITHOUT_NORMS, batch, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT

BF16 = torch.bfloat16


def patched(
    sites: tuple[str, ...], adapters: torch.dtype = torch.float32, trained: str = "lora_"
) -> tuple[PatchReport, int]:
    """A small Llama under autocast with adapters on the last layer of its MLPs: the report, and the bytes kept."""
    model = peft.get_peft_model(tiny_model("llama").to(BF16), peft.LoraConfig(r=2, target_modules=["down_proj"]))
    for name, weight in model.named_parameters():
        weight.data = weight.to(adapters if "lora_" in name else BF16)
        weight.requires_grad_(trained in name)
    model.enable_input_require_grads()
    report = patch_model(model, InvActConfig(sites=sites, autocast_dtype=BF16))
    with SavedActivations(model) as saved, torch.autocast("cpu", BF16):
        model(**batch(model))
    return report, saved.total_bytes


def test_an_adapter_gives_up_its_copy_so_that_the_gate_need_not_keep_its_inputs() -> None:
    report, kept = patched(("adapter", "activation"))
    assert {site.plan for site in report.sites} == {"adapter-input", "gate-output"}
    copies = [site for site in report.sites if site.plan == "adapter-input"]
    assert all(site.before == site.after for site in copies)
    _, with_copies = patched(("activation",))
    elements = 2 * 2 * 16 * 96  # layers, sequences, tokens, width
    matrices = 2 * 2 * 96  # layers, rank, width
    assert with_copies - kept == 2 * elements + 2 * matrices - elements // 8


@pytest.mark.parametrize(
    ("adapters", "trained"), [(BF16, "lora_"), (torch.float32, "lora_B")], ids=["keeps its input", "keeps nothing"]
)
def test_it_is_left_alone_where_nothing_would_change(adapters: torch.dtype, trained: str) -> None:
    report, _ = patched(("adapter",), adapters, trained)
    assert [site.reason for site in report.sites] == ["left alone: nothing would keep less"] * 2


def test_rounding_is_that_of_the_unpatched_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    patched_in_runs: list[int] = []

    def rounded(scope: Scope, dtype: torch.dtype | None, seed: int) -> dict[str, torch.Tensor | None]:
        patched_in_runs.append(len(list(AdapterInputs().patched(scope.module))))
        return {}

    def compare(before: Measurement, after: Measurement, precision: torch.dtype, again: Again) -> None:
        again(1)

    monkeypatch.setattr(together, "rounded_gradients", rounded)
    monkeypatch.setattr(together, "difference", compare)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "o_proj"], lora_dropout=0.1)
    report = patch_model(peft.get_peft_model(tiny_model("llama"), config), InvActConfig(sites=("adapter",)))
    assert report.patched == 6
    # Those with the same input are unpatched together; what was decided before stays.
    assert patched_in_runs == [0, 2]


def test_more_layers_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    run = Scope.run
    monkeypatch.setattr(Scope, "run", lambda self, arguments: runs.append(self) or run(self, arguments))
    counts = []
    for layers in (2, 4):
        model = peft.get_peft_model(
            tiny_model("llama", num_hidden_layers=layers),
            peft.LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1),
        )
        assert patch_model(model, WITHOUT_NORMS).patched == layers * (7 + 1)
        counts.append(len(runs))
        runs.clear()
    assert counts[0] == counts[1]
