"""Own state: the run's own weights in host memory, while a batch runs at others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_lr.copies.host_memory import Arena
from lightning_lr.copies.optimizer_memory import entries, states
from lightning_lr.copies.parked import cloned
from lightning_lr.copies.shares import Share, Shares, alike, allocated, sums_of, writable
from lightning_lr.internals import buffers_of, foreach_copy, metric_memory, writes
from lightning_lr.shards import local, reshard

SMALL = 16
"""Elements of what an optimizer counts with: it may move though no gradient does."""


class OwnState:
    """Keeps what a batch without an update may still change, and gives it back, bit for bit.

    Weights and buffers are kept in host memory: nothing is taken on the device but copies of torchmetrics' states.
    Frozen weights are copied there once, and again only after they were written. An optimizer that makes no update has
    only its counts to change.

    Args:
        module: its parameters, buffers and torchmetrics are covered.
        optimizers: their counts, and those of optimizers within them.
        scaler: a gradient scaler, or None.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> own, healthy = OwnState(net, []), net.weight.item()
        >>> own.keep()
        >>> _ = net.weight.data.fill_(float("nan"))
        >>> own.leave()
        >>> net.weight.item() == healthy
        True
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[Optimizer], scaler: Any = None) -> None:
        self._module, self._optimizers, self._scaler = module, list(optimizers), scaler
        self._sharded = reshard(module)
        self._plan: dict[str, Share] = {}
        self._arena: Arena | None = None
        self._tensors: dict[str, Tensor] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._marks: dict[str, Any] = {}
        self._frozen: dict[str, list[int]] = {}
        self._metrics: list[tuple[Metric, dict[str, Any]]] = []
        self._counts: dict[str, tuple[dict[Any, Any], str, Any]] = {}
        self._known: set[str] = set()
        self._scaler_state: dict[str, Any] | None = None
        self._inside = False

    @property
    def bytes(self) -> int:
        """The host memory that it takes on this rank."""
        return sum(kept.bytes for kept in self._plan.values())

    @torch.no_grad()
    def keep(self, *, metrics: bool = True) -> None:
        """Keeps the state as it is now.

        Args:
            metrics: whether torchmetrics are to be as now after `leave`; False: what is added to them stays.
        """
        if self._sharded:
            reshard(self._module)
        self._buffers = [
            (owner, name, buffer)
            for owner in self._module.modules()
            for name, buffer in buffers_of(owner).items()
            if buffer is not None
        ]
        # what can't be written in place, a batch can only replace
        parameters = {key: p for key, p in self._module.named_parameters() if writable(p)}
        buffers = {f"buffer {at}": b for at, (_, _, b) in enumerate(self._buffers) if writable(b)}
        self._tensors = {**parameters, **buffers}
        live = {key: local(tensor.detach()) for key, tensor in self._tensors.items()}
        plan = Shares(torch.device("cpu")).plan(live)
        if self._arena is None or not alike(plan, self._plan):
            self._marks, self._plan, self._arena = {}, {}, None
            self._plan, self._arena = allocated(plan, pinned=any(tensor.is_cuda for tensor in live.values()))
        # weights that were not written since the batch before are there already. Frozen ones (a teacher) may be
        # written through `.data`, which doesn't count: of those all bits are looked at
        self._frozen = _bits({key: live[key] for key, p in parameters.items() if not p.requires_grad})
        marks = {
            key: (_mark(live[key]), self._frozen.get(key))
            for key, p in parameters.items()
            if key in self._frozen or not hasattr(p, "to_local")
        }
        changed = [key for key in live if key not in marks or self._marks.get(key) != marks[key]]
        if changed:
            foreach_copy([self._plan[key].whole for key in changed], [live[key] for key in changed])
        self._marks = marks
        all_metrics = [part for part in self._module.modules() if isinstance(part, Metric)] if metrics else []
        self._metrics = [(metric, {k: cloned(v) for k, v in metric_memory(metric).items()}) for metric in all_metrics]
        self._counts = {
            key: (holder, name, cloned(value)) for key, holder, name, value in self._memory() if _small(value)
        }
        self._known = {key for key, *_ in self._memory()}
        self._scaler_state = None if self._scaler is None else self._scaler.state_dict()
        self._inside = True

    @torch.no_grad()
    def leave(self) -> None:
        """Gives it back, within a batch too; without effect when it has been given back.

        What comes only after the optimizer's step is left to `end_batch`.
        """
        if not self._inside:
            return
        self._inside = False
        if self._sharded:
            reshard(self._module)
        for owner, name, buffer in self._buffers:
            # a module may have assigned another
            buffers_of(owner)[name] = buffer
        live = {key: local(tensor.detach()) for key, tensor in self._tensors.items()}
        same = [key for key, t in live.items() if tuple(t.shape) == self._plan[key].shape]
        self._give_back(live, [key for key in same if key not in self._frozen])
        for metric, held in self._metrics:
            for name, value in held.items():
                setattr(metric, name, value)
        self._metrics = []
        for holder, name, value in self._counts.values():
            holder[name] = value
        self._counts = {}
        # last: to look at them takes a little memory, which may be short
        now = _bits({key: live[key] for key in self._frozen})
        written = {key for key, bits in now.items() if (_mark(live[key]), bits) != self._marks[key]}
        self._give_back(live, [key for key in same if key in written])
        self._marks = {key: (_mark(live[key]), self._frozen.get(key)) for key in self._marks}

    def end_batch(self) -> None:
        """The same, and what an optimizer has begun to count; and the scaler's, which is updated after the step."""
        if self._inside:
            self.leave()
            for key, holder, name, _ in list(self._memory()):
                if key not in self._known:
                    del holder[name]
        held, self._scaler_state = self._scaler_state, None
        if held:
            self._scaler.load_state_dict(held)

    def _give_back(self, live: dict[str, Tensor], keys: list[str]) -> None:
        if keys:
            foreach_copy([live[key] for key in keys], [self._plan[key].whole for key in keys])

    def _memory(self) -> Any:
        yield from states(self._optimizers)
        yield from entries(self._optimizers)


def _mark(tensor: Tensor) -> tuple[int, int | None]:
    """What changes when a tensor is put elsewhere, or written."""
    return tensor.data_ptr(), writes(tensor)


def _bits(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    """Of each tensor what changes with its bits, in host memory; one wait for each device."""
    devices: dict[torch.device, list[str]] = {}
    for key, tensor in tensors.items():
        devices.setdefault(tensor.device, []).append(key)
    found: dict[str, list[int]] = {}
    for keys in devices.values():
        found.update(zip(keys, torch.stack([sums_of(tensors[key]) for key in keys]).tolist(), strict=True))
    return found


def _small(value: Any) -> bool:
    return not isinstance(value, (Tensor, list, dict)) or (isinstance(value, Tensor) and value.numel() <= SMALL)
