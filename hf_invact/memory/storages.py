"""The storages of tensors of any kind."""

from __future__ import annotations

import torch
from torch import Tensor, UntypedStorage

_COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def storages(*tensors: Tensor) -> dict[int, UntypedStorage]:
    """Where the tensors' data lies, by what identifies each storage while it lives.

    For a sparse tensor those are the storages of its indices and its values; for a subclass that wraps others (DTensor,
    jagged tensors, quantized weights) those of the local or inner tensors. None for what shows no storage (MKL-DNN).
    """
    with torch._C.DisableTorchFunctionSubclass():  # a subclass may refuse what it does not know
        found = [plain.untyped_storage() for tensor in tensors for plain in _plain_tensors(tensor)]
    # (`data_ptr` would not identify them: it is 0 for fake and empty tensors.)
    return {storage._cdata: storage for storage in found}


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of the elements (of a view, not of all its storage), of whatever `storages` sees."""
    with torch._C.DisableTorchFunctionSubclass():
        return sum(plain.numel() * plain.element_size() for plain in _plain_tensors(tensor))


def _plain_tensors(tensor: Tensor) -> list[Tensor]:
    try:
        with torch.no_grad():
            inner = _inner(tensor)
        if inner is None:
            tensor.untyped_storage()
            return [tensor]
    except Exception:  # of whatever library the tensor is from: a figure is not worth a training
        return []
    return [plain for part in inner for plain in _plain_tensors(part)]


def _inner(tensor: Tensor) -> list[Tensor] | None:
    """What the tensor consists of; None where it has a storage of its own, if any."""
    if hasattr(type(tensor), "__tensor_flatten__"):  # PyTorch's protocol of tensors that wrap others
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return [getattr(tensor, name) for name in names]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in _COMPRESSED_ROWS:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in _COMPRESSED_COLUMNS:
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return None
