"""The kernels compile for GPUs that this machine need not have: Triton has the compilers, the driver is a stub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
TARGETS = ["cuda:80:32", "cuda:90:32", "hip:gfx942:64"]
SECONDS = 5  # for the first use of a kernel; most of it is the start of the compiler
COMPILE = """
import sys, time, types
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from hf_invact.curves import CURVES, Fit
from hf_invact.ops import tells_output
from hf_invact.norms import FORMS
from hf_invact.ops.triton import activation, adapter, adapter_kernels, norm
from hf_invact.ops.triton.launch import launch_elementwise

backend, architecture, warp_size = sys.argv[1].split(":")
target = GPUTarget(backend, int(architecture) if architecture.isdigit() else architecture, int(warp_size))
driver.set_active(types.SimpleNamespace(
    get_current_target=lambda: target, get_current_device=lambda: 0, get_current_stream=lambda device=None: 0))
run, compiled = JITFunction.run, {}

def compile_only(kernel, *arguments, warmup, **options):
    began = time.perf_counter()
    result = run(kernel, *arguments, warmup=True, **options)
    seconds = time.perf_counter() - began
    assert "cubin" in result.asm or "hsaco" in result.asm
    compiled.setdefault(kernel.__name__, []).append(seconds)

JITFunction.run = compile_only
for dtype in (torch.bfloat16, torch.float16, torch.float32):
    gate, up, dy = (torch.randn(1000).to(dtype) for _ in range(3))
    for curve in CURVES.values():
        if architecture == "80" and curve.name not in ("gelu", "silu"):
            continue  # the compiler is that of the newer one, for which all of them are compiled
        if isinstance(curve.inverse, Fit) and (dtype == torch.bfloat16 or curve.name == "clipped_gelu"):
            y, side = activation.forward(gate, curve)
            activation.backward(dy, y, side, curve)
            if tells_output(curve, dtype, dtype):
                activation.gate_forward(gate, up, curve)
                activation.gate_backward(dy, y, up, side, curve)
            if curve.name in activation.SLOPES:
                activation.exact_backward(dy, gate, curve)
                activation.exact_gate_backward(dy, gate, up, curve)
    bits = torch.zeros(125, dtype=torch.uint8)
    for of_x in (torch.bfloat16, torch.float16, torch.float32):
        adapter.masked(gate.to(of_x), bits, dtype, 1.25)
        adapter.both_masked(gate.to(of_x), dy, bits, 1.25, 1.25)
    for name in ("layer_norm", "llama", "t5", "deberta", "deepseek_v4")[: 5 if dtype == torch.bfloat16 else 2]:
        form, channels = FORMS[name], 4096 if dtype == torch.bfloat16 else 64
        x, factor = torch.randn(3, channels).to(dtype), torch.ones(channels, dtype=dtype)
        bias = factor if form.centred else None
        y, *saved = norm.forward(x, factor, bias, 1e-6, 1, form)
        norm.backward(torch.randn_like(y), y, *saved, factor, bias, form, dtype, [True, True, form.centred])
        if name in ("layer_norm", "llama"):
            y, *saved = norm.exact_forward(x, factor, bias, 1e-6, 1, form)
            norm.exact_backward(torch.randn_like(y), x, *saved, factor, [True, True, form.centred])
launch_elementwise(adapter_kernels.pack, torch.ones(1000, dtype=torch.uint8), bits)
names = ("forward", "backward", "gate_forward", "gate_backward", "exact_backward", "exact_gate_backward")
names += ("choose_kept", "norm_forward", "norm_backward")
assert set(compiled) == {*names, "pack", "masked", "both_masked"}, compiled.keys()
print(max(seconds for times in compiled.values() for seconds in times))
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_all_kernels_compile_in_seconds(target: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, target], env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout) < SECONDS
