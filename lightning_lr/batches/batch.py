"""Batch: what is in a batch, how much memory it takes, and copies of it."""

from __future__ import annotations

import copy
import io
import pickle
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

HOST = torch.device("cpu")

NAMED = (type, types.FunctionType, types.BuiltinFunctionType)
"""What a deep copy shares with the original: types and functions."""

SPENT = (Iterator, io.IOBase)
"""What can be read only once."""

ROWS, COLUMNS = (torch.sparse_csr, torch.sparse_bsr), (torch.sparse_csc, torch.sparse_bsc)


class UnkeepableError(Exception):
    """A batch that can't be copied."""


class Contents(NamedTuple):
    """What a batch is made of.

    Args:
        tensors: those that are cloned, each once, however deep they are.
        bytes: by device, of all tensors and arrays; on the host, of all else that the batch has, too.
    """

    tensors: list[Tensor]
    bytes: dict[torch.device, int]


def contents(batch: Any) -> Contents:
    """Looks into a batch as a deep copy does, and copies none of its tensors and arrays.

    Raises:
        UnkeepableError: when something in it can't be copied, or is an iterator or a file.

    Example:
        >>> found = contents({"image": torch.ones(2, 3).expand(4, 2, 3), "mask": np.ones(5, bool)})
        >>> len(found.tensors), 101 <= found.bytes[HOST] < 200
        (1, True)
    """
    scale = _Scale()
    try:
        scale.dump(batch)
    except UnkeepableError:
        raise
    except Exception as error:
        raise UnkeepableError(f"{type(error).__name__}: {error}") from error
    return Contents(scale.tensors, scale.bytes)


class KeptBatch:
    """A batch as it was, whatever becomes of the one that it was copied from.

    Tensors have storage of their own, on the device where they were, and no graph; what the batch has twice, the copy
    has twice. All else is a deep copy.

    Args:
        batch: of any kind that can be copied.
        tensors: those of its `contents`.

    Example:
        >>> pixels = torch.ones(2)
        >>> batch = {"image": pixels, "name": "a"}
        >>> kept = KeptBatch(batch, contents(batch).tensors)
        >>> _ = pixels.zero_()
        >>> kept.fresh(), kept.fresh()["image"] is kept.fresh()["image"]
        ({'image': tensor([1., 1.]), 'name': 'a'}, False)
    """

    def __init__(self, batch: Any, tensors: Sequence[Tensor]) -> None:
        self.tensors = [clone(tensor) for tensor in tensors]
        # a deep copy takes from its memo what was copied before
        memo: dict[int, Any] = {id(tensor): copied for tensor, copied in zip(tensors, self.tensors, strict=True)}
        self.batch = copy.deepcopy(batch, memo)

    def fresh(self) -> Any:
        """One more copy, which may be written to."""
        return KeptBatch(self.batch, self.tensors).batch


def clone(tensor: Tensor) -> Tensor:
    """A tensor's values in storage of its own, without a graph.

    Example:
        >>> clone(torch.ones(1).expand(3)).stride()
        (1,)
    """
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def size(tensor: Tensor) -> int:
    """The bytes that a clone of a tensor takes.

    Example:
        >>> size(torch.ones(1).expand(100)), size(torch.eye(100).to_sparse())
        (400, 2000)
    """
    parts = [tensor]
    if tensor.layout is torch.sparse_coo:
        whole = tensor.coalesce()
        parts = [whole.indices(), whole.values()]
    elif tensor.layout in ROWS:
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in COLUMNS:
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    return sum(part.numel() * part.element_size() for part in parts)


def add(to: dict[torch.device, int], device: torch.device, more: int) -> None:
    """Counts bytes on a device."""
    to[device] = to.get(device, 0) + more


class _Counter:
    """In place of a file.

    Args:
        bytes: where what is written is counted.
    """

    def __init__(self, bytes: dict[torch.device, int]) -> None:
        self._bytes = bytes

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        add(self._bytes, HOST, written)
        return written


class _Scale(pickle.Pickler):
    """Weighs a batch: pickling visits what a deep copy visits, and what it writes is only counted."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.bytes: dict[torch.device, int] = {}
        super().__init__(_Counter(self.bytes), protocol=5)
        # they are held on to, so that none has the id of one that is gone
        self._seen: dict[int, Any] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, SPENT):
            raise UnkeepableError(f"what a {type(obj).__name__} gives can be read only once")
        whole = isinstance(obj, np.ndarray) and not obj.dtype.hasobject
        if not whole and not isinstance(obj, Tensor):
            return 0 if isinstance(obj, NAMED) else None
        if id(obj) not in self._seen:
            self._seen[id(obj)] = obj
            if isinstance(obj, Tensor):
                self._weigh(obj)
            else:
                add(self.bytes, HOST, obj.nbytes)
        return 0

    def _weigh(self, tensor: Tensor) -> None:
        if tensor.grad_fn is not None:
            raise UnkeepableError("a tensor in it has a graph behind it")
        add(self.bytes, tensor.device, size(tensor))
        # a subclass, or a tensor with attributes of its own, knows best how it is copied
        if tensor.is_nested or (type(tensor) is Tensor and not vars(tensor)):
            self.tensors.append(tensor)
