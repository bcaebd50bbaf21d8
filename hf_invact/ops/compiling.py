"""Runs functions of flat tensors through torch.compile, piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch._inductor.config as inductor
from torch import Tensor

from ..curves import Curve
from .packing import BITS, packed_size

# A CPU kernel for tensors of any size would run on one core, so there is one for pieces of each of these sizes: a call
# costs about 50 microseconds, so there should be few, and what is left at the end is padded.
CPU_PIECES = tuple(1 << power for power in (21, 20, 19, 18, 17))

# Numbers whose side bits are read together: as many as vectors hold of 16-bit numbers (AVX2) or of float32 (AVX-512).
LANES = 16

# Results of up to so many operations are computed anew wherever they are used. With more of them, compiling takes up to
# minutes; with fewer, parts of a kernel know no half precision, and the kernel then fills half of its vectors.
WRITTEN_ANEW = 22


class Lanes(NamedTuple):
    """Constants of a device that the compiler would else compute again for each vector; float32.

    Attributes:
        bits: of the eight numbers of a byte, shape (8,).
        halves: what moves each bit of a word to the first place behind the point; shape (LANES,).
    """

    bits: Tensor
    halves: Tensor


@cache
def lanes_of(device: torch.device) -> Lanes:
    place = torch.arange(LANES, device=device)
    bits = 2.0 ** place[:BITS].float()
    if sys.byteorder == "big":  # the first byte of a word holds its upper bits
        place = place ^ BITS
    return Lanes(bits, 0.5 ** (place + 1).float())


def words_of(side: Tensor) -> Tensor:
    """The bits of LANES numbers as one; float32, shape (size / LANES,)."""
    aligned = side if side.storage_offset() % 2 == 0 else side.clone()
    return aligned.view(torch.int16).float()


def run(
    function: Callable[..., None],
    curve: Curve,
    results: list[Tensor],
    tensors: list[Tensor],
    side: Tensor | None = None,
    written_anew: int = WRITTEN_ANEW,
) -> None:
    """Call a compiled function with pieces of the results, which it writes, and of the tensors and side bits.

    Args:
        function: of the curve, the device's `Lanes`, the side bits as `words_of`, and pieces of results and tensors,
            shape (size,) each.
        results, tensors: shape (numel,); side: as `eager.forward` returned it.
        written_anew: on a CPU, see `WRITTEN_ANEW`.
    """
    on_cpu = tensors[0].device.type == "cpu"
    compiled = _compiled(function, curve, tensors[0].dtype, on_cpu, written_anew)
    lanes = lanes_of(tensors[0].device)
    with torch.no_grad():  # of an operator's own tensors nothing is differentiated
        for start, stop, size in _pieces(tensors[0].numel(), on_cpu):
            pieces = [_piece(tensor, start, stop) for tensor in (*results, *tensors)]
            filled = [_fill(piece, size) for piece in pieces]
            words = None if side is None else words_of(_fill(_piece(side, start, stop), size))
            compiled(lanes, words, filled)
            for piece, written in zip(pieces[: len(results)], filled, strict=False):
                if written is not piece:
                    piece.copy_(written[: piece.numel()])


def _pieces(size: int, on_cpu: bool) -> Iterator[tuple[int, int, int]]:
    """Start and end of each piece, and the size that it is padded to; all but the last one have it."""
    start = 0
    while start < size:
        whole = (piece for piece in CPU_PIECES if piece <= size - start)
        step = next(whole, CPU_PIECES[-1]) if on_cpu else -(-size // LANES) * LANES
        yield start, min(start + step, size), step
        start += step


def _piece(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Of elements, or of side bits, which alone are bytes."""
    return tensor[start // BITS : packed_size(stop)] if tensor.dtype == torch.uint8 else tensor[start:stop]


def _fill(piece: Tensor, size: int) -> Tensor:
    """The piece padded to so many elements, or side bits to those of so many; itself where nothing is missing."""
    missing = (packed_size(size) if piece.dtype == torch.uint8 else size) - piece.numel()
    return torch.nn.functional.pad(piece, (0, missing)) if missing else piece


@cache
def _compiled(
    function: Callable[..., None], curve: Curve, dtype: torch.dtype, on_cpu: bool, written_anew: int
) -> Callable[..., None]:
    def of_tensors(lanes: Lanes, words: Tensor | None, tensors: list[Tensor]) -> None:
        function(curve, lanes, words, *tensors)

    # torch.compile counts what it has compiled by code object, and gives up at 8: hence one for each curve and dtype.
    code = of_tensors.__code__.replace(co_name=f"{function.__name__}_of_{curve.name}")
    copied = FunctionType(code, globals(), closure=of_tensors.__closure__)
    # With roundings to half precision as they are written: gates are rebuilt from them.
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if on_cpu:
        # Multiplications and additions in one instruction: without it the polynomials take twice as long.
        flag = inductor.cpp.enable_floating_point_contract_flag  # a bool in older versions
        options["cpp.enable_floating_point_contract_flag"] = "fast" if isinstance(flag, str) else True
        options["realize_opcount_threshold"] = written_anew
    # None: for any size from the second one on. (True would take the coefficients for variables too.)
    return torch.compile(copied, dynamic=False if on_cpu else None, fullgraph=True, options=options)
