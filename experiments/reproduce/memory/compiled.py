"""What a model keeps with `torch.compile`, without generating code, and without weights or a GPU.

The compiler traces the forward and the backward pass as one graph, and cuts it so that little has to be kept for the
second half: cheap operations are recomputed. Here this is done with inductor's own decompositions, passes and
partitioner, and the first half runs on fake tensors. They are CPU tensors: layer norms keep their deviations in the
dtype of the input, where a GPU keeps 4 bytes per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._functorch.aot_autograd import aot_function
from torch._guards import TracingContext, detect_fake_mode, tracing
from torch._inductor.compile_fx import partition_fn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import lazy_init
from torch._inductor.virtualized import V
from torch.func import functional_call
from torch.fx import GraphModule
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from hf_invact.memory import SavedActivations


def compiled_bytes(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> int:
    """Bytes that one forward pass of a compiled model saves for backward.

    Args:
        model: on fake tensors whose mode is active; patched or not.
        batch: its arguments, without a mask. Tracing cannot depend on a mask's values, so Transformers creates a causal
            mask for every model that asks for one.
    """
    from torch.compiler import _compile_session_context  # which PyTorch 2.11 lacks; all else works there

    weights, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def forward(weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Any:
        outputs = functional_call(model, {**weights, **buffers}, kwargs=dict(inputs))
        return tuple(leaf for leaf in tree_leaves(dict(outputs)) if isinstance(leaf, Tensor))

    with _disable_current_modes():
        lazy_init(next(iter(weights.values())).device)  # registers patterns once, with tensors of its own
    compiled: Callable[..., Any] = aot_function(
        forward,
        fw_compiler=_run_as_it_is,
        partition_fn=partition_fn,
        decompositions=select_decomp_table(),
        num_params_buffers=len(weights) + len(buffers),
    )
    fake_mode = detect_fake_mode(list(weights.values()))
    with V.set_fake_mode(fake_mode), tracing(TracingContext(fake_mode)), enable_python_dispatcher():
        with _compile_session_context():  # models check whether they are compiled
            compiled(weights, buffers, batch)
        own = [*weights.values(), *buffers.values(), *batch.values()]
        with SavedActivations(nn.Module(), ignore=own) as saved:
            outputs = compiled(weights, buffers, batch)
    assert outputs is not None  # must live until everything is counted
    return saved.total_bytes


def _run_as_it_is(gm: GraphModule, example_inputs: Any) -> Callable[[list[Any]], Any]:
    def run(arguments: list[Any]) -> Any:
        taken = list(arguments)
        arguments.clear()
        return gm(*taken)

    run._boxed_call = True  # type: ignore[attr-defined]  # it clears its list of arguments
    return run
