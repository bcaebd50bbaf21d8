"""The storages of tensors of any kind."""

from __future__ import annotations

import torch
from torch import Tensor, UntypedStorage

_COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def storages(*tensors: Tensor) -> dict[int, UntypedStorage]:
    """The distinct storages of tensors, by a key that identifies each storage while it is alive.

    A sparse tensor has the storages of its indices and values; a subclass that wraps other tensors (DTensor, jagged
    tensors, quantized weights) those of the local or inner tensors. Tensors without an accessible storage (MKL-DNN)
    have none.
    """
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may refuse unknown functions
        found = [plain.untyped_storage() for tensor in tensors for plain in _plain_tensors(tensor)]
    # (`data_ptr` does not identify them: it is 0 for fake and empty tensors.)
    return {storage._cdata: storage for storage in found}


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the elements (of a view: not of its whole storage), by the rules of `storages`."""
    with torch._C.DisableTorchFunctionSubclass():
        return sum(plain.numel() * plain.element_size() for plain in _plain_tensors(tensor))


def _plain_tensors(tensor: Tensor) -> list[Tensor]:
    try:
        with torch.no_grad():
            inner = _inner(tensor)
        if inner is None:
            tensor.untyped_storage()
            return [tensor]
    except Exception:  # any library may define the tensor, and a measurement must not end the training
        return []
    return [plain for part in inner for plain in _plain_tensors(part)]


def _inner(tensor: Tensor) -> list[Tensor] | None:
    """The tensors that it consists of; None for a tensor with a storage of its own."""
    if hasattr(type(tensor), "__tensor_flatten__"):  # PyTorch's protocol for tensors that wrap others
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]  # of the protocol
        return [getattr(tensor, name) for name in names]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in _COMPRESSED_ROWS:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in _COMPRESSED_COLUMNS:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return None
