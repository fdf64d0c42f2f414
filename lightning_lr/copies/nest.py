"""Nest: tensors in lists and dicts, kept in host memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lr.copies.host_memory import Arena
from lightning_lr.copies.host_transfer import HostTransfer
from lightning_lr.copies.parked import Parked, cloned, map_tensors
from lightning_lr.copies.shares import Share, Shares, alike, allocated


class Nest:
    """The memory for values that have tensors somewhere in them; it is used again while their sizes are the same.

    Example:
        >>> live = {"old": [torch.ones(2)], "count": 1}
        >>> kept = Nest().keep(live, HostTransfer())
        >>> _ = live["old"][0].zero_()
        >>> kept["old"][0].tensor.tolist(), kept["count"]
        ([1.0, 1.0], 1)
    """

    def __init__(self) -> None:
        self._plan: dict[str, Share] = {}
        self._arena: Arena | None = None

    def keep(self, values: dict[str, Any], transfer: HostTransfer) -> dict[str, Any]:
        """A deep copy in which all tensors are parked; it is whole when the transfer has ended, until the next one.

        Tensors that are not plain ones (DTensors) are copied where they are.
        """
        live: dict[str, Tensor] = {}
        map_tensors(values, lambda held: live.setdefault(str(len(live)), held.detach()) if _plain(held) else held)
        plan = Shares(torch.device("cpu")).plan(live)
        if self._arena is None or not alike(plan, self._plan):
            # what can't be used again goes first
            self._plan, self._arena = {}, None
            self._plan, self._arena = allocated(plan, pinned=any(tensor.is_cuda for tensor in live.values()))
        whole: list[Any] = [self._plan[key].whole for key in live]
        transfer.copy(whole, list(live.values()), aside=False)
        places = iter(whole)
        return cloned(values, lambda t: Parked(next(places), t.device) if _plain(t) else t.detach().clone())


def _plain(tensor: Tensor) -> bool:
    return isinstance(tensor, Tensor) and not hasattr(tensor, "to_local") and tensor.layout is torch.strided
