"""Models on fake tensors: complete, tied, and able to take a training step."""

from __future__ import annotations

import pytest
import torch

from hf_invact import Lora, PlanningError
from hf_invact.memory import SavedActivations
from hf_invact.planning.batch import make_batch
from hf_invact.planning.dry_run import optional_autocast
from hf_invact.planning.fake.tensors import fake_tensors
from hf_invact.planning.model.build import build_model, set_checkpointing
from hf_invact.planning.model.setup import Setup
from hf_invact.planning.model.source import find_source
from tests.planning.small import MODEL_TYPES, small_config


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_has_the_weights_of_the_real_model(model_type: str) -> None:
    source = find_source(small_config(model_type))
    real = source.model_class._from_config(source.config, dtype=torch.bfloat16)
    with fake_tensors("cpu"):
        fake = build_model(source, Setup(source.config))
        assert {(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in fake.named_parameters()} == {
            (name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in real.named_parameters()
        }  # tied weights have one name
        assert {(name, b.shape, b.dtype, b.device) for name, b in fake.named_buffers()} == {
            (name, b.shape, b.dtype, b.device) for name, b in real.named_buffers()
        }
    assert fake.training


@pytest.mark.filterwarnings("ignore::FutureWarning")  # from PEFT
@pytest.mark.parametrize("autocast_dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("lora", [None, Lora(dropout=0.1)], ids=["full", "lora"])
def test_checkpointed_layers_are_recomputed_as_before(lora: Lora | None, autocast_dtype: torch.dtype | None) -> None:
    with fake_tensors("cuda"):
        model = build_model(find_source(small_config("llama")), Setup("llama", "float32", lora=lora))
        set_checkpointing(model, True)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained)
        with optional_autocast(autocast_dtype):
            loss = model(**make_batch(model, 2, 16)).loss
        loss.backward()  # fails if recomputed layers save something else
        optimizer.step()
        assert all(weight.grad is not None for weight in trained)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name has changed in Transformers 5.23
def test_checkpointing_keeps_what_a_real_run_keeps() -> None:
    source = find_source(small_config("gpt2"))
    real = source.model_class._from_config(source.config, dtype=torch.float32).train()
    real.config.use_cache = False
    real.gradient_checkpointing_enable({"use_reentrant": False})
    with SavedActivations(real) as expected:
        real(**make_batch(real, 2, 16))
    with fake_tensors("cpu"):
        fake = build_model(source, Setup(source.config, "float32"))
        set_checkpointing(fake, True)
        with SavedActivations(fake) as saved:
            fake(**make_batch(fake, 2, 16))
    assert saved.by_module == expected.by_module


def test_a_model_that_cannot_checkpoint() -> None:
    source = find_source(small_config("bert"))
    lacking = type("Lacking", (source.model_class,), {"supports_gradient_checkpointing": False})
    with fake_tensors("cpu"):
        model = build_model(type(source)(source.name, source.config, lacking), Setup(source.config))
        with pytest.raises(PlanningError, match="Plan without gradient checkpointing"):
            set_checkpointing(model, True)
