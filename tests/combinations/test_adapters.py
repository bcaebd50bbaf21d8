"""What can be done with the adapters of a patched model besides training: adding, merging, disabling."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from hf_invact import patch_model, unpatch_model
from hf_invact.memory import SavedActivations
from tests.combinations.adapters import lora, with_adapters
from tests.combinations.loops import loop
from tests.combinations.table import ADAPTERS
from tests.combinations.training import Run, check_losses_and_gradients, check_saved_bytes
from tests.compatibility import Matrix, patched_sites
from tests.models import batch, each_model, tiny_model
from tests.trainer.helpers import is_patched

AFTERWARDS = (
    "Patched before the adapters were added, with the plan for the model without them. Patch again to update it."
)
MERGED = "Merged weights and results are the same as in the plain model. Frozen layers are trainable again in this row."
DISABLED = "All weights are frozen. Only the embeddings' output needs a gradient, as checkpointing requires."


def record(matrix: Matrix, row: str, name: str, plain: Run, patched: Run, note: str) -> None:
    check_saved_bytes(plain, patched)
    kept = {"plain_bytes": plain.saved_bytes, "patched_bytes": patched.saved_bytes}
    matrix.record(ADAPTERS, row, name, **kept, **patched_sites(patched.report), note=note)


@each_model
def test_adapters_may_be_added_before_patching_or_after(name: str, matrix: Matrix) -> None:
    plain = loop(with_adapters(tiny_model(name), lora(name)), False)
    before = loop(with_adapters(tiny_model(name), lora(name)), True)
    model = tiny_model(name)
    report = patch_model(model)
    after = loop(with_adapters(model, lora(name)), False)
    after.report = report
    assert is_patched(after.model)
    assert after.losses == pytest.approx(before.losses, rel=1e-6)  # the last norm is patched only where all is trained
    check_losses_and_gradients(plain, after, name, torch.float32)
    record(matrix, "LoRA, added to a patched model (loop)", name, plain, after, AFTERWARDS)


@each_model
def test_adapters_are_merged_and_unloaded_while_patched(name: str, matrix: Matrix) -> None:
    def merged(flag: bool) -> Any:
        model = with_adapters(tiny_model(name), lora(name))
        if flag:
            patch_model(model)
        result = model.merge_and_unload()
        assert is_patched(result) == flag
        return result.requires_grad_(True)

    plain, patched = merged(False), merged(True)
    assert dict(plain.state_dict()).keys() == dict(patched.state_dict()).keys()
    assert all(torch.equal(weight, patched.state_dict()[key]) for key, weight in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(plain.eval()(**batch(plain)).logits, patched.eval()(**batch(plain)).logits)
    runs = loop(plain.train(), False), loop(patched.train(), False)
    runs[1].report = patch_model(tiny_model(name))
    check_losses_and_gradients(*runs, name, torch.float32)
    record(matrix, "LoRA, merged and unloaded while patched (loop)", name, *runs, MERGED)
    unpatch_model(patched)
    assert str(patched) == str(plain)


@each_model
def test_adapters_are_disabled(name: str, matrix: Matrix) -> None:
    def run(flag: bool) -> Run:
        model = with_adapters(tiny_model(name), lora(name))
        model.enable_input_require_grads()
        outputs: list[torch.Tensor] = []
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: outputs.append(output))
        report = None
        with model.disable_adapter():
            if flag:
                report = patch_model(model)
            torch.manual_seed(0)
            outputs.clear()
            with SavedActivations(model) as saved:
                loss = model(**batch(model)).loss
            (gradient,) = torch.autograd.grad(loss, outputs[-1])
        assert not any(isinstance(weight, Parameter) and weight.grad is not None for weight in model.parameters())
        return Run(model, [loss.item()], {"embeddings": gradient.double()}, saved.total_bytes, report)

    plain, patched = run(False), run(True)
    assert patched.losses == pytest.approx(plain.losses, rel=2e-7 if name == "gpt2" else 0)
    torch.testing.assert_close(patched.gradients, plain.gradients, rtol=1e-4, atol=1e-6)
    record(matrix, "LoRA, adapters disabled (loop)", name, plain, patched, DISABLED)
