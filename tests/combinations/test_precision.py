"""What half precision adds: the gradient scaler, and the dtype that an activation returns under autocast."""

from __future__ import annotations

import pytest
import torch

from hf_invact import InvActConfig, patch_model
from hf_invact.memory.module_calls import watch_outputs
from tests.combinations.loops import loop
from tests.combinations.table import PRECISION
from tests.combinations.training import (
    Combination,
    check_losses_and_gradients,
    check_precision,
    check_saved_bytes,
    record,
)
from tests.compatibility import Matrix
from tests.helpers import dtype_name, each_half_dtype, record_saved
from tests.models import batch, each_model, tiny_model

SCALED = Combination(
    PRECISION,
    "autocast float16, gradient scaler (loop)",
    tiny_model,
    note="On a CPU, the Trainer's `fp16=True` silently trains in float32.",
)


def float16() -> torch.autocast:
    return torch.autocast("cpu", torch.float16)


@each_model
def test_autocast_to_float16_with_the_gradient_scaler(name: str, matrix: Matrix) -> None:
    plain, patched = (
        loop(tiny_model(name), flag, around_forward=float16, scaler=torch.amp.GradScaler("cpu"))
        for flag in (False, True)
    )
    check_losses_and_gradients(plain, patched, name, torch.float16)
    check_precision(plain, patched, exact=loop(tiny_model(name), False, steps=1))
    check_saved_bytes(plain, patched, SCALED)
    record(matrix, SCALED, name, plain, patched)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_pytorch_tanh"])
@each_half_dtype
def test_under_autocast_gpt2s_activation_returns_the_same_tensor_that_the_next_layer_keeps(
    dtype: torch.dtype, activation: str
) -> None:
    model = tiny_model("gpt2", activation=activation)
    patch_model(model, InvActConfig(autocast_dtype=dtype))
    outputs: list[torch.Tensor] = []
    mlps = [layer.mlp for layer in model.transformer.h]
    ends = [watch_outputs(mlp.act, outputs.append) for mlp in mlps]  # not with hooks, which would prevent inversion
    with torch.autocast("cpu", dtype), record_saved() as saved:
        model(**batch(model, tokens=12))  # so that no weight has as many elements
    for end in ends:
        end()
    assert [dtype_name(output.dtype) for output in outputs] == [dtype_name(dtype)] * 2
    for output in outputs:
        storage = output.untyped_storage().data_ptr()
        # Saved by the activation and by the linear layer after it; nothing else of that size is saved.
        assert sum(tensor.untyped_storage().data_ptr() == storage for tensor in saved) == 2
    wide = {tensor.untyped_storage().data_ptr() for tensor in saved if tensor.numel() == outputs[0].numel()}
    assert wide == {output.untyped_storage().data_ptr() for output in outputs}
