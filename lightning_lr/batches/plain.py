"""Plain: a batch as lists, tensors and numbers, which a checkpoint may hold and `weights_only=True` reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_lr.batches.batch import clone

LEAVES = (str, int, float, bool, type(None))
LAYOUTS = (torch.strided, torch.sparse_coo)


class NotPlainError(Exception):
    """A value that only its own class can build."""


def to_plain(value: Any) -> list[Any]:
    """Turns a value into lists, host tensors and numbers; tensors that are on the host already are not copied.

    Raises:
        NotPlainError: when it has other things in it than dicts, lists, tuples, tensors, arrays, packed sequences,
            strings and numbers.

    Example:
        >>> to_plain({"count": 1})
        ['dict', [[['leaf', 'count'], ['leaf', 1]]]]
        >>> from_plain(to_plain({"count": (1, 2.5)}), torch.device("cpu"))
        {'count': (1, 2.5)}
    """
    return _said(value, {})


def from_plain(said: list[Any], device: torch.device) -> Any:
    """The value that `to_plain` was given, in memory of its own.

    Args:
        said: what `to_plain` returned, as a checkpoint holds it.
        device: where tensors go that were not on the host.
    """
    return _built(said, device, {})


def _said(value: Any, memo: dict[int, Tensor]) -> list[Any]:
    kind = type(value)
    if kind in LEAVES:
        return ["leaf", value]
    if kind is Tensor and value.layout in LAYOUTS and not value.is_nested and not value.is_quantized:
        # a tensor that is there twice is one tensor in the checkpoint, too
        host = memo.setdefault(id(value), value.detach().cpu())
        return ["tensor", host, value.device.type == "cpu", value.requires_grad]
    if isinstance(value, np.generic) or kind is np.ndarray:
        return ["array", _tensor(value), isinstance(value, np.generic)]
    if kind is dict:
        return ["dict", [[_said(key, memo), _said(item, memo)] for key, item in value.items()]]
    if kind is PackedSequence:
        return ["packed", [_said(item, memo) for item in value]]
    if kind in (list, tuple):
        return [kind.__name__, [_said(item, memo) for item in value]]
    raise NotPlainError(kind.__name__)


def _built(said: list[Any], device: torch.device, memo: dict[int, Tensor]) -> Any:
    kind, value = said[0], said[1]
    if kind == "leaf":
        return value
    if kind == "tensor":
        if id(value) not in memo:
            on_host, learns = said[2:]
            memo[id(value)] = clone(value).to("cpu" if on_host else device).detach().requires_grad_(learns)
        return memo[id(value)]
    if kind == "array":
        array = value.numpy().copy()
        return array[()] if said[2] else array
    if kind == "dict":
        return {_built(key, device, memo): _built(item, device, memo) for key, item in value}
    items = [_built(item, device, memo) for item in value]
    if kind == "packed":
        return PackedSequence(*items)
    return tuple(items) if kind == "tuple" else items


def _tensor(array: Any) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, order="C"))
    except TypeError as error:
        raise NotPlainError(str(array.dtype)) from error
