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
from ..buffers import ordinary_cpu_tensors

# A CPU kernel for tensors of any size would run on one core, so there is one kernel for pieces of each of these sizes.
# A call costs about 50 microseconds, so there should be few pieces. The rest at the end is padded.
CPU_PIECES = tuple(1 << power for power in (22, 21, 20, 19, 18, 17))

# On other devices a piece bounds the memory that is passed from one kernel to the next.
DEVICE_PIECE = 1 << 25

# Side bits that are read together, as an integer that float32 can hold exactly.
WORD = 16

# The compiler inlines results of up to this many operations wherever they are used. With a higher number, compiling
# takes up to minutes. With a lower one, parts of a kernel have no half precision, and it fills half of each vector.
INLINED_OPERATIONS = 22


class Lanes(NamedTuple):
    """Constants on a device that the compiler would otherwise compute again for each vector; float32.

    They have as many numbers as the widest vectors (AVX-512): those of one word in float32, of two in half precision.

    Attributes:
        bits: what each number adds to each word, shape (words, lanes).
        halves: the power of 1/2 that moves a number's bit of its word to the first binary place; 0 in other words.
    """

    bits: Tensor
    halves: Tensor


@cache
def lanes_of(device: torch.device, dtypes: tuple[torch.dtype, ...]) -> Lanes:
    """For tensors of these dtypes."""
    words = 2 if any(dtype.itemsize == 2 for dtype in dtypes) else 1
    place = torch.arange(WORD, device=device)
    halves = 0.5 ** (place + 1)
    if sys.byteorder == "big":  # words are written as integers, whose first byte then holds the upper bits
        place = place ^ BITS
    bits = torch.where(place == WORD - 1, -1.0, 1.0) * 2.0**place
    return Lanes(*(torch.block_diag(*[values.float()] * words) for values in (bits, halves)))


def run_compiled(
    function: Callable[..., None],
    constant: Curve | float,
    results: list[Tensor],
    tensors: list[Tensor],
    side: Tensor | None = None,
    *,
    prepare: Callable[..., Tensor] | None = None,
    inlined_operations: int = INLINED_OPERATIONS,
) -> None:
    """Compile a function once, and call it with pieces of the results, which it writes, the tensors and the side bits.

    Args:
        function: takes the constant, the device's `Lanes`, the side bits, shape (size / 8,), and pieces of results and
            tensors, shape (size,) each. Side bits as a result are int16 words, shape (size / WORD,).
        results, tensors: shape (numel,).
        side: the side bits of the tensors, uint8, shape (ceil(numel / 8),).
        prepare: takes the same without side bits and results. What it returns is one more tensor for the function.
        inlined_operations: for the function on a CPU; see `INLINED_OPERATIONS`.
    """
    device, size = tensors[0].device, tensors[0].numel()
    on_cpu = device.type == "cpu"
    dtypes = tuple([tensor.dtype for tensor in (*results, *tensors)])
    compiled = _compiled(function, constant, dtypes, device, on_cpu, side is not None, inlined_operations)
    compiled_prepare = prepare and _compiled(prepare, constant, dtypes, device, on_cpu, False, INLINED_OPERATIONS)
    for start, stop, padded in _pieces(size, on_cpu, is_bounded=prepare is not None):
        pieces, bits = [*results, *tensors], [] if side is None else [side]
        if padded != size:
            pieces = [_piece(tensor, start, stop, padded) for tensor in pieces]
            bits = [_piece(tensor, start, stop, padded) for tensor in bits]
        written, read = pieces[: len(results)], pieces[len(results) :]
        if compiled_prepare:
            read.append(compiled_prepare(*read))
        compiled(*bits, *[_as_words(piece) for piece in written], *read)
        if stop - start < padded:
            for result, piece in zip(results, written, strict=True):
                rest = _piece(result, start, stop, stop - start)
                rest.copy_(piece[: rest.numel()])


def _pieces(size: int, on_cpu: bool, *, is_bounded: bool) -> Iterator[tuple[int, int, int]]:
    """Start and end of each piece, and its size with padding, which only the last piece may need.

    Args:
        is_bounded: leave out the largest size, because the result of `prepare` has the size of a piece.
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
    """A piece of elements, or their side bits (uint8), padded to this many elements."""
    if tensor.dtype == torch.uint8:
        start, stop, padded = start // BITS, packed_size(stop), packed_size(padded)
    piece, missing = tensor[start:stop], padded - (stop - start)
    return torch.nn.functional.pad(piece, (0, missing)) if missing else piece


def _as_words(piece: Tensor) -> Tensor:
    """Side bits as the integers that a kernel writes; other tensors unchanged."""
    return piece.view(torch.int16) if piece.dtype == torch.uint8 else piece


@cache
def _compiled(
    function: Callable[..., Any],
    constant: Curve | float,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
    on_cpu: bool,
    has_side: bool,
    inlined_operations: int,
) -> Callable[..., Any]:
    """The compiled function, of the side bits (if any) and of pieces of tensors of these dtypes."""

    def of_tensors(bits: Tensor, halves: Tensor, *tensors: Tensor) -> Any:
        side = () if has_side else (None,)
        return function(constant, Lanes(bits, halves), *side, *tensors)

    lanes = lanes_of(device, dtypes)
    # Round to half precision wherever the function does: `_unmultiply` relies on it.
    options: dict[str, Any] = {"emulate_precision_casts": True}
    if on_cpu:
        # Fuse multiplications and additions: otherwise the polynomials take twice as long.
        options["cpp.enable_floating_point_contract_flag"] = "fast"
        options["realize_opcount_threshold"] = inlined_operations
        # A vector's side bits are computed from up to four bytes and two rows of `Lanes`. The compiler would write the
        # result of more than four reads (its default) to memory first.
        options["realize_reads_threshold"] = 8
        return CpuKernels(of_tensors, lanes, options)
    name = f"{function.__name__}_of_{constant.name if isinstance(constant, Curve) else constant}"
    return partial(compiled_for_any_size(of_tensors, name, options), *lanes)


def compiled_for_any_size(function: Callable[..., Any], name: str, options: dict[str, Any]) -> Callable[..., Any]:
    """A function compiled by `torch.compile`, from its second size on for any size.

    PyTorch compiles at most 8 versions of a code object: hence one code object, with a name, for each call.
    """
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=name)
    copied = FunctionType(code, function.__globals__, closure=function.__closure__)
    # None: for any size from the second one on. (With True, constants would be variables too.)
    for_any_size = torch.compile(copied, dynamic=None, fullgraph=True, options=options)
    # Without no_grad it would be compiled once with gradients enabled and once without.
    compiled: Callable[..., Any] = torch.no_grad()(for_any_size)
    return compiled


class CpuKernels:
    """A function of tensors of fixed dtypes, compiled for each size and number of threads that it is called with.

    It calls the compiler directly. The result of `torch.compile` checks guards on each call, which takes as long as a
    kernel for half a million elements.
    """

    def __init__(self, function: Callable[..., Any], constants: Sequence[Tensor], options: dict[str, Any]) -> None:
        """Compile nothing yet.

        Args:
            constants: tensors that are passed to the function before those of each call.
        """
        self.function, self.constants, self.options = function, constants, options
        self.kernels: dict[tuple[int, int], Callable[..., Any]] = {}

    def __call__(self, *tensors: Tensor) -> Any:
        """Call the kernel.

        Args:
            tensors: on the CPU, contiguous, always with the same dtypes. The last one's size determines the others.
        """
        key = torch.get_num_threads(), tensors[-1].numel()
        kernel = self.kernels.get(key)
        if kernel is None:
            kernel = self.kernels[key] = self._compile([*self.constants, *tensors])
        return kernel(*self.constants, *tensors)

    def _compile(self, tensors: Sequence[Tensor]) -> Callable[..., Any]:
        with ordinary_cpu_tensors(), FakeTensorMode():
            examples: list[Any] = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
            graph = make_fx(self.function)(*examples)
            compiled: Callable[..., Any] = torch._inductor.compile(graph, examples, options=self.options)
            return compiled
