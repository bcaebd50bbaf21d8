"""Runs functions of flat tensors through PyTorch's compiler, piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch._inductor
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from ...curves import Curve
from ..bits import BITS, packed_size
from ..plain import plain_cpu

# A CPU kernel for tensors of any size would run on one core, so there is one for pieces of each of these sizes: a call
# costs about 50 microseconds, so there should be few, and what is left at the end is padded.
CPU_PIECES = tuple(1 << power for power in (22, 21, 20, 19, 18, 17))

# On other devices a piece bounds the memory of what is kept between two kernels.
DEVICE_PIECE = 1 << 25

# Side bits that are read together, as one integer that float32 can hold.
WORD = 16

# Results of up to so many operations are computed anew wherever they are used. With more of them, compiling takes up to
# minutes; with fewer, parts of a kernel know no half precision, and the kernel then fills half of its vectors.
WRITTEN_ANEW = 22


class Lanes(NamedTuple):
    """Constants of a device that the compiler would else compute again for each vector; float32.

    Of as many numbers as the widest vectors hold (AVX-512): one word's in float32, two words' in half precision.

    Attributes:
        bits: what each number adds to each word, shape (words, lanes).
        halves: what moves each number's bit of each word to the first place behind the point; 0 in other words.
    """

    bits: Tensor
    halves: Tensor


@cache
def lanes_of(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Lanes:
    """For tensors of these dtypes."""
    words = 2 if any(dtype.itemsize == 2 for dtype in dtypes) else 1
    place = torch.arange(WORD, device=device)
    halves = 0.5 ** (place + 1)
    if sys.byteorder == "big":  # the first byte of a word, which is written as an integer, holds its upper bits
        place = place ^ BITS
    bits = torch.where(place == WORD - 1, -1.0, 1.0) * 2.0**place
    return Lanes(*(torch.block_diag(*[values.float()] * words) for values in (bits, halves)))


def run(
    function: Callable[..., None],
    curve: Curve,
    results: list[Tensor],
    tensors: list[Tensor],
    side: Tensor | None = None,
    *,
    first: Callable[..., Tensor] | None = None,
    written_anew: int = WRITTEN_ANEW,
) -> None:
    """Call a compiled function with pieces of the results, which it writes, and of the tensors and side bits.

    Args:
        function: of the curve, the device's `Lanes`, the side bits, shape (size / 8,), and pieces of results and
            tensors, shape (size,) each; of side bits as a result, int16 words, shape (size / WORD,).
        results, tensors: shape (numel,); side: as `eager.forward` returned it.
        first: the same of the tensors alone, without bits; what it returns the function is given as one more tensor.
        written_anew: on a CPU, by the function; see `WRITTEN_ANEW`.
    """
    device, size = tensors[0].device, tensors[0].numel()
    on_cpu = device.type == "cpu"
    dtypes = tuple([tensor.dtype for tensor in tensors])
    compiled = _compiled(function, curve, dtypes, device, on_cpu, side is not None, written_anew)
    compiled_first = first and _compiled(first, curve, dtypes, device, on_cpu, False, WRITTEN_ANEW)
    for start, stop, padded in _pieces(size, on_cpu, is_bounded=first is not None):
        pieces, bits = [*results, *tensors], [] if side is None else [side]
        if padded != size:
            pieces = [_piece(tensor, start, stop, padded) for tensor in pieces]
            bits = [_piece(tensor, start, stop, padded) for tensor in bits]
        written, read = pieces[: len(results)], pieces[len(results) :]
        if compiled_first:
            read.append(compiled_first(*read))
        compiled(*bits, *[_as_words(piece) for piece in written], *read)
        if stop - start < padded:
            for result, piece in zip(results, written, strict=True):
                rest = _piece(result, start, stop, stop - start)
                rest.copy_(piece[: rest.numel()])


def _pieces(size: int, on_cpu: bool, *, is_bounded: bool) -> Iterator[tuple[int, int, int]]:
    """Start and end of each piece, and the size that it is padded to; all but the last one have it.

    Args:
        is_bounded: none is of the largest size, because something is kept for each piece.
    """
    sizes = CPU_PIECES[is_bounded:] if on_cpu else (DEVICE_PIECE,)
    start = 0
    for piece in sizes:
        while start + piece <= size:
            yield start, start + piece, piece
            start += piece
    if start < size:
        yield start, size, sizes[-1] if on_cpu else -(-(size - start) // (2 * WORD)) * 2 * WORD


def _piece(tensor: Tensor, start: int, stop: int, padded: int) -> Tensor:
    """Of elements, or of side bits, padded to those of so many elements."""
    if tensor.dtype == torch.uint8:
        start, stop, padded = start // BITS, packed_size(stop), packed_size(padded)
    piece, missing = tensor[start:stop], padded - (stop - start)
    return torch.nn.functional.pad(piece, (0, missing)) if missing else piece


def _as_words(piece: Tensor) -> Tensor:
    """Side bits as the integers that are written; others as they are."""
    return piece.view(torch.int16) if piece.dtype == torch.uint8 else piece


@cache
def _compiled(
    function: Callable[..., Any],
    curve: Curve,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    on_cpu: bool,
    has_side: bool,
    written_anew: int,
) -> Callable[..., Any]:
    """A function of the side bits, if it has them, and pieces of a device's tensors of these dtypes."""

    def of_tensors(bits: Tensor, halves: Tensor, *tensors: Tensor) -> Any:
        side = () if has_side else (None,)
        return function(curve, Lanes(bits, halves), *side, *tensors)

    lanes = lanes_of(device, dtypes)
    # With roundings to half precision as they are written: gates are rebuilt from them.
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if on_cpu:
        # Multiplications and additions in one instruction: without it the polynomials take twice as long.
        options["cpp.enable_floating_point_contract_flag"] = "fast"
        options["realize_opcount_threshold"] = written_anew
        # A vector's side bits come of up to four bytes and two rows of `Lanes`. More than the compiler's own limit of
        # four reads it would write to memory first.
        options["realize_reads_threshold"] = 8
        return CpuKernels(of_tensors, lanes, options)
    # torch.compile counts what it has compiled by code object, and gives up at 8: hence one for each curve and dtypes.
    code = of_tensors.__code__.replace(co_name=f"{function.__name__}_of_{curve.name}")
    copied = FunctionType(code, globals(), closure=of_tensors.__closure__)
    # None: for any size from the second one on. (True would take the coefficients for variables too.)
    for_any_size = torch.compile(copied, dynamic=None, fullgraph=True, options=options)
    # It would be compiled once for where gradients are enabled and once for where they are not.
    return torch.no_grad()(partial(for_any_size, *lanes))


class CpuKernels:
    """A function of tensors of certain dtypes that is compiled for each size and number of threads it is called with.

    It is handed to the compiler itself. What `torch.compile` returns asks on each call whether what it once compiled
    still holds, which takes as long as a kernel for half a million elements.
    """

    def __init__(self, function: Callable[..., Any], first: Sequence[Tensor], options: dict[str, Any]) -> None:
        """Take what to compile.

        Args:
            first: tensors that are given to the function before those of each call.
        """
        self.function, self.first, self.options = function, first, options
        self.kernels: dict[tuple[int, int], Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        """Call the kernel.

        Args:
            tensors: on the CPU, contiguous, always of the same dtypes; all sizes follow from that of the last one.
        """
        key = torch.get_num_threads(), tensors[-1].numel()
        kernel = self.kernels.get(key)
        if kernel is None:
            kernel = self.kernels[key] = self._compile([*self.first, *tensors])
        return kernel(*self.first, *tensors)

    def _compile(self, tensors: Sequence[Tensor]) -> Callable[..., Any]:
        with plain_cpu(), FakeTensorMode():
            examples: list[Any] = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
            graph = make_fx(self.function)(*examples)
            compiled: Callable[..., Any] = torch._inductor.compile(graph, examples, options=self.options)
            return compiled
