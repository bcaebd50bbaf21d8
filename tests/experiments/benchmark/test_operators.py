"""The operators of the benchmark: all implementations compute the same, and their bytes are counted correctly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from experiments.benchmark.operators import implementations, traffic
from experiments.benchmark.operators.adapters import ADAPTER_INPUTS, AdapterInput
from experiments.benchmark.operators.catalogue import ACTIVATIONS, Operator
from experiments.benchmark.operators.implementations import Unavailable, import_liger, inverted, native
from experiments.benchmark.operators.measure import OPERATORS, OperatorCase, measure_operator, operator_cases
from experiments.benchmark.operators.norms import NORMS, Norm
from experiments.benchmark.settings import Settings, settings_for

CPU = torch.device("cpu")
QUICK = settings_for("cpu", None, 0, quick=True)
each_operator = pytest.mark.parametrize("operator", ACTIVATIONS.values(), ids=ACTIVATIONS)


def tensors(operator: Operator) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    return operator.tensors((8, 16), torch.float32, torch.Generator().manual_seed(0))


def as_tuple(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


@each_operator
@pytest.mark.parametrize("way", ["native", "fused"])
def test_the_native_backward_pass_is_that_of_autograd(operator: Operator, way: str) -> None:
    dy, inputs = tensors(operator)
    exact = native(operator, dy, inputs).calls["autograd"]()
    fused = operator.fused_backward(dy, *inputs)
    found = as_tuple(fused if way == "fused" else native(operator, dy, inputs).calls["backward"]())
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


@each_operator
def test_autograd_keeps_what_the_native_backward_pass_is_given(operator: Operator) -> None:
    _, inputs = tensors(operator)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        operator.native(*(tensor.requires_grad_() for tensor in inputs))
    tensors_kept = {tensor.data_ptr() for tensor in kept if tensor.numel() > 1}
    assert len(tensors_kept) == len(operator.kept(*inputs))


@each_operator
def test_a_backend_computes_the_same_directly_and_through_autograd(operator: Operator) -> None:
    dy, inputs = tensors(operator)
    ours, theirs = inverted(operator, "eager", dy, inputs), native(operator, dy, inputs)
    forward, _ = ours.calls["forward"]()
    torch.testing.assert_close(forward, theirs.calls["forward"]())
    backward = as_tuple(ours.calls["backward"]())
    torch.testing.assert_close(backward, ours.calls["autograd"]())
    torch.testing.assert_close(backward, as_tuple(theirs.calls["backward"]()), rtol=1e-2, atol=1e-3)


# Bytes per element in half precision: read and written.
@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        (traffic.ACTIVATION, 2 + 2, 4 + 2),
        (traffic.INVERTED_ACTIVATION, 2 + 2 + 1 / 8, 4 + 1 / 8 + 2),
        (traffic.FUSED_GATE, 4 + 2, 6 + 4),
        (traffic.INVERTED_GATE, 4 + 2 + 1 / 8, 6 + 1 / 8 + 4),
        (traffic.UNFUSED_GATE, 6 + 4, 12 + 6),
    ],
    ids=["activation", "inverted activation", "fused gate", "inverted gate", "unfused gate"],
)
def test_bytes(kind: traffic.Traffic, forward: float, backward: float) -> None:
    elements = 1 << 10
    assert kind.bytes("forward", elements, itemsize=2) == forward * elements
    assert kind.bytes("backward", elements, itemsize=2) == backward * elements
    assert kind.bytes("autograd", elements, itemsize=2) == (forward + backward) * elements


def test_on_a_cpu_everything_is_measured_at_every_size() -> None:
    cpu, cuda = (settings_for(kind, None, 0, quick=False) for kind in ("cpu", "cuda"))
    assert all(cpu.compares(dtype, size) for dtype in cpu.dtypes for size in cpu.sizes)
    assert [cuda.compares("bf16", size) for size in cuda.sizes] == [size == cuda.compared_size for size in cuda.sizes]
    assert not cuda.compares("fp16", cuda.compared_size)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_operator_is_measured_in_every_dtype_and_size(kind: str) -> None:
    settings = settings_for(kind, None, 0, quick=False)
    cases = operator_cases(settings)
    assert len(set(cases)) == len(cases) == len(OPERATORS) * len(settings.dtypes) * len(settings.sizes)
    # If the time runs out, what the README shows has already been measured.
    first = {(case.dtype, case.elements) for case in cases[: len(OPERATORS)]}
    assert first == {(settings.dtypes[0], settings.compared_size)}


def measured(settings: Settings, operator: str = "gate_silu", elements: int = 1 << 14) -> dict[str, Any]:
    return measure_operator(OperatorCase(operator, "bf16", elements), settings, CPU)


def test_the_entry_of_an_operator() -> None:
    entry = measured(QUICK)
    assert {key: entry[key] for key in ("operator", "dtype", "elements")} == {
        "operator": "gate_silu",
        "dtype": "bf16",
        "elements": 1 << 14,
    }
    for direction, moved in (("forward", 6), ("backward", 10), ("autograd", 16)):
        found = entry[direction]["implementations"]
        bits = (2 if direction == "autograd" else 1) / 8
        assert entry[direction]["copy"]["bytes"] == found["inverted-eager"]["bytes"] == (moved + bits) * (1 << 14)
        assert entry[direction]["copy"]["copy_share"] == 1
        ours, theirs = found["inverted-eager"], found["native"]
        assert ours["ratio_to_native"] == pytest.approx(ours["ms"] / theirs["ms"], rel=1e-3)
        assert ours["copy_share"] == pytest.approx(ours["gb_per_s"] / entry[direction]["copy"]["gb_per_s"], rel=1e-3)
        assert ours["ratio_to_compiled"] is None
        assert found["liger"] == {"unavailable": "Liger's kernels need a GPU"}


@pytest.mark.parametrize("operator", [*ADAPTER_INPUTS, *NORMS], ids=lambda operator: operator.name)
@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_entry_of_an_adapter_or_a_norm(compiles: bool, operator: AdapterInput | Norm) -> None:
    entry = measured(replace(QUICK, compiles=compiles), operator.name)
    for direction in ("forward", "backward", "autograd"):
        found = entry[direction]["implementations"]
        liger = {"unavailable": "Liger's kernels need a GPU"} if isinstance(operator, Norm) else None
        assert found.pop("liger", None) == liger
        assert list(found) == ["native", *(["compiled"] if compiles else []), "inverted-eager"]
        assert all(figures["ms"] > 0 for figures in found.values())
        assert found["inverted-eager"]["ratio_to_native"] > 0


def test_the_other_backends_are_measured_at_the_compared_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    twice = replace(QUICK, backends=("eager", "other"))
    monkeypatch.setattr(
        implementations, "inverted", lambda operator, backend_name, dy, inputs: native(operator, dy, inputs)
    )
    at_both = [measured(twice, "gelu", elements)["forward"]["implementations"] for elements in (1 << 14, 1 << 12)]
    assert [list(found) for found in at_both] == [
        ["native", "inverted-eager", "inverted-other"],
        ["native", "inverted-eager"],
    ]
    assert "autograd" not in measured(QUICK, "gelu", 1 << 12)
    everywhere = measured(replace(twice, compares_all_sizes=True), "gelu", 1 << 12)
    assert list(everywhere["autograd"]["implementations"]) == ["native", "inverted-eager", "inverted-other"]
    assert "autograd" not in measured(replace(QUICK, compared_dtypes=("fp32",)), "gelu")


@pytest.mark.parametrize(
    ("error", "record"),
    [
        (
            torch.OutOfMemoryError("Tried to allocate 9 GiB.\nMore"),
            {"unavailable": "out of memory: Tried to allocate 9 GiB."},
        ),
        (ValueError("no such number"), {"failed": "ValueError: no such number"}),
    ],
    ids=["out of memory", "fault"],
)
def test_what_fails_is_recorded_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, error: Exception, record: dict[str, str]
) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(implementations, "inverted", fail)
    found = measured(QUICK)["backward"]["implementations"]
    assert found["inverted-eager"] == record
    assert found["native"]["ms"] > 0


def test_a_missing_liger_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "liger_kernel", None)
    with pytest.raises(Unavailable, match="liger-kernel is not installed"):
        import_liger("liger_kernel.ops.swiglu", "LigerSiLUMulFunction", torch.device("cuda"))
