"""What fake CPU tensors save in place of CUDA's, against PyTorch's tables: derivatives, kernel shapes, autocast."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchgen
from torch import Tensor, nn

from hf_invact.inputs.integers import tokens
from hf_invact.memory import SavedActivations
from hf_invact.planning.fake.kernels import FLOAT32_UNDER_AUTOCAST
from hf_invact.planning.fake.tensors import fake_tensors

aten = torch.ops.aten
HALF, FLOAT = torch.bfloat16, torch.float32


def saved_bytes(function: Callable[..., Tensor], *tensors: Tensor) -> int:
    with SavedActivations(nn.Identity()) as saved:
        result = function(*tensors)
    assert result.requires_grad
    return saved.total_bytes


def names_in_derivatives(operator: str) -> set[str]:
    """The arguments and results of an operator that occur in the formulas of its gradients."""
    text = (Path(torchgen.__file__).parent / "packaged" / "autograd" / "derivatives.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^- name: {operator}\((.*?)\) -> \((.*?)\)\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    arguments, results, formulas = found.groups()
    named = [*re.findall(r"Tensor\??(?:\([a-z]!\))? (\w+)", f"{arguments}, {results}"), "result0", "result1", "result2"]
    gradients = " ".join(line.partition(": ")[2] for line in formulas.splitlines() if not line.startswith("  result"))
    return {name for name in named if re.search(rf"(?<!\.)\b{name}\b(?!\.)", gradients)}


def bytes_by_schema(operator: str, *args: Any, **kwargs: Any) -> int:
    """Bytes of the tensors that its derivative uses, each storage once, in the shapes of its kernel."""
    function = getattr(aten, operator).default
    with torch.no_grad():
        results = function(*args, **kwargs)
    tensors = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False))
    for index, (described, result) in enumerate(zip(function._schema.returns, results, strict=True)):
        tensors[described.name or f"result{index}"] = result
    used = [tensors[name] for name in names_in_derivatives(operator) if isinstance(tensors.get(name), Tensor)]
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in used}.values())


def leaf(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=True)


def test_the_reader_of_derivatives() -> None:
    assert names_in_derivatives("native_dropout") == {"result1"}
    assert names_in_derivatives("_scaled_dot_product_efficient_attention") == {
        *("query", "key", "value", "attn_bias", "output", "log_sumexp", "philox_seed", "philox_offset")
    }


@pytest.mark.parametrize("function", [F.dropout, nn.Dropout(0.1)], ids=["function", "module"])
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_dropout_keeps_a_byte_per_element(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    with fake_tensors("cuda"):
        x = leaf(4, 32, dtype=dtype)
        assert saved_bytes(function, x) == bytes_by_schema("native_dropout", x, 0.1, True) == 4 * 32
        assert function(x).shape == x.shape
    with fake_tensors("cpu"):
        assert saved_bytes(function, leaf(4, 32, dtype=dtype)) == 4 * 32 * dtype.itemsize


@pytest.mark.parametrize("options", [{"training": False}, {"p": 0.0}], ids=["evaluation", "zero"])
def test_dropout_that_drops_nothing_keeps_nothing(options: dict[str, Any]) -> None:
    with fake_tensors("cuda"):
        x = leaf(4, 32)
        assert F.dropout(x, **options) is x


QKV = [(2, 4, 40, 16), (2, 4, 40, 16), (2, 4, 40, 16)]
GROUPED = [(2, 4, 40, 16), (2, 2, 40, 16), (2, 2, 40, 16)]


@pytest.mark.parametrize("shapes", [QKV, GROUPED], ids=["heads", "grouped heads"])
def test_attention_in_half_precision_is_flash(shapes: list[tuple[int, ...]]) -> None:
    with fake_tensors("cuda"):
        qkv = [leaf(*shape) for shape in shapes]
        kept = saved_bytes(lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True), *qkv)
        assert kept == bytes_by_schema("_scaled_dot_product_flash_attention", *qkv, 0.0, True)


def test_flash_attention_pads_the_heads() -> None:
    with fake_tensors("cuda"):
        qkv = [leaf(2, 4, 40, 12) for _ in range(3)]
        padded = [leaf(2, 4, 40, 16) for _ in range(3)]
        assert saved_bytes(F.scaled_dot_product_attention, *qkv) == bytes_by_schema(
            "_scaled_dot_product_flash_attention", *padded
        )
        assert F.scaled_dot_product_attention(*qkv).shape == (2, 4, 40, 12)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_attention_in_float32_is_efficient(dropout_p: float) -> None:
    with fake_tensors("cuda"):
        qkv = [leaf(*shape, dtype=FLOAT) for shape in QKV]
        kept = saved_bytes(lambda *qkv: F.scaled_dot_product_attention(*qkv, dropout_p=dropout_p), *qkv)
        assert kept == bytes_by_schema("_scaled_dot_product_efficient_attention", *qkv, None, True, dropout_p)
        assert kept < 4 * 2 * 4 * 40 * 16 * 4 + 2 * 4 * 64 * 4 + 17  # no attention matrix


def test_attention_with_a_mask_keeps_numbers_of_it_in_every_layer() -> None:
    with fake_tensors("cuda"):
        qkv, mask = [leaf(*shape) for shape in QKV], torch.ones(2, 1, 40, 40, dtype=torch.bool)
        numbers = torch.empty(2, 1, 40, 48, dtype=HALF)[..., :40]  # rows are padded to 16 numbers
        one = bytes_by_schema("_scaled_dot_product_efficient_attention", *qkv, numbers, True)
        assert saved_bytes(lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=mask), *qkv) == one
        two = saved_bytes(lambda *qkv: sum(F.scaled_dot_product_attention(*qkv, attn_mask=mask) for _ in "12"), *qkv)
        assert two - one >= numbers.untyped_storage().nbytes()


def test_grouped_attention_in_float32_has_no_kernel() -> None:
    with fake_tensors("cuda"):
        qkv = [leaf(*shape, dtype=FLOAT) for shape in GROUPED]
        kept = saved_bytes(lambda *qkv: F.scaled_dot_product_attention(*qkv, enable_gqa=True), *qkv)
        assert kept > 2 * 4 * 40 * 40 * 4  # attention matrices


def test_attention_under_autocast_is_flash() -> None:
    with fake_tensors("cuda"), torch.autocast("cpu", HALF):
        qkv = [leaf(*shape, dtype=FLOAT) for shape in QKV]
        halves = [leaf(*shape) for shape in QKV]
        assert saved_bytes(F.scaled_dot_product_attention, *qkv) == bytes_by_schema(
            "_scaled_dot_product_flash_attention", *halves
        )


def test_statistics_of_layer_norm_are_float32() -> None:
    for device, statistic in (("cuda", 4), ("cpu", 2)):
        with fake_tensors(device):
            norm = nn.LayerNorm(32, dtype=HALF)
            with SavedActivations(norm) as saved:
                norm(leaf(4, 32))
            assert saved.total_bytes == 4 * 32 * 2 + 2 * 4 * statistic


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="this version of PyTorch has no grouped products")
@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_experts_in_any_dtype(dtype: torch.dtype) -> None:
    with fake_tensors("cuda"):
        x, experts, offsets = leaf(8, 16, dtype=dtype), leaf(4, 16, 32, dtype=dtype), torch.empty(4, dtype=torch.int32)
        result = F.grouped_mm(x, experts, offs=offsets)
        assert (result.shape, result.dtype) == ((8, 32), dtype)
        assert (
            saved_bytes(lambda x: F.grouped_mm(x, experts, offs=offsets), x)
            == (8 * 16 + 4 * 16 * 32) * (dtype.itemsize) + 4 * 4
        )
        result.square().sum().backward()
        assert experts.grad.shape == experts.shape


@pytest.mark.parametrize(
    ("function", "cuda", "cpu"),
    [
        (lambda x: x.pow(3.0), FLOAT, HALF),
        (lambda x: x**3.0, FLOAT, HALF),
        (torch.exp, FLOAT, HALF),
        (lambda x: F.softmax(x, dim=-1), FLOAT, HALF),
        (lambda x: F.layer_norm(x, (32,)), FLOAT, HALF),
        (F.softplus, FLOAT, HALF),
        (torch.sum, FLOAT, HALF),
        (F.gelu, HALF, HALF),
        (torch.tanh, HALF, HALF),
    ],
    ids=["pow", "**", "exp", "softmax", "layer_norm", "softplus", "sum", "gelu", "tanh"],
)
def test_what_autocast_computes_in_float32(
    function: Callable[[Tensor], Tensor], cuda: torch.dtype, cpu: torch.dtype
) -> None:
    for device, expected in (("cuda", cuda), ("cpu", cpu)):
        with fake_tensors(device):
            x = leaf(4, 32)
            assert function(x).dtype == HALF
            with torch.autocast("cpu", HALF):
                assert function(x).dtype == expected
                assert function(torch.empty(0, 32, dtype=HALF)).dtype == cpu  # cached answers stay those of the CPU


def test_the_table_of_autocast_is_that_of_pytorch() -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.is_file():
        pytest.skip("this build of PyTorch has no headers")
    text = header.read_text(encoding="utf-8")
    start, end = text.index("#define AT_FORALL_FP32(_)"), text.index("#define AT_FORALL_PROMOTE")
    listed = set(re.findall(r"_\((?:ADD_NS\()?(\w+)", text[start:end])) - {"_", "ADD_NS"}
    made_of_others = {"square", "cross_entropy", "interpolate", "rpow"}  # composed in C++
    assert FLOAT32_UNDER_AUTOCAST - made_of_others <= listed
    rare = {"native_layer_norm", "nll_loss2d", "frobenius_norm", "nuclear_norm", "pdist", "poisson_nll_loss"}
    rare |= {name for name in listed if "upsample" in name or name.startswith("linalg")}
    assert listed - rare <= FLOAT32_UNDER_AUTOCAST


def test_integers_stay_real() -> None:
    with fake_tensors("cuda"):
        mask = tokens(1, 2, 4)
        assert bool((mask[:, 1:].to(torch.bool) | False).all())
        assert (mask.cumsum(-1) == torch.tensor(0)).shape == (2, 4)
        mixed = torch.empty(2, 4) * mask
        assert type(mixed).__name__ == "FakeTensor"
