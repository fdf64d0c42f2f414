"""Snapshot: a copy in host memory of all that an optimizer's update changes, to be given back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_lr.copies.homes import MEMORY, Homes
from lightning_lr.copies.host_memory import Arena
from lightning_lr.copies.host_transfer import HostTransfer
from lightning_lr.copies.nest import Nest
from lightning_lr.copies.optimizer_memory import bytes_of
from lightning_lr.copies.origins import Origins, Rename
from lightning_lr.copies.parked import Parked, map_tensors, on_devices, on_host
from lightning_lr.copies.shares import Share, Shares, alike, allocated, flat
from lightning_lr.copies.source import Live, Source
from lightning_lr.internals import foreach_copy, metric_updates, set_metric
from lightning_lr.shards import local

OWN = ("parameter/0/", "buffer/0/")
"""Keys of the model's own tensors."""


class Snapshot:
    """One copy of a source. Its memory is made at the first `take` and used again at the next.

    It copies each rank's own shard, and each rank's share of what all ranks hold alike. From CUDA it copies into pinned
    memory on a stream of its own, without a host sync: whoever is about to write the source calls `fence` first.
    Tensors whose names have changed meanwhile (pruning, parametrizations) are recognized.

    Args:
        source: what is copied, and given back.
        shares: how ranks divide it; None: each keeps all.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> snapshot = Snapshot(Source([layer], []))
        >>> snapshot.take()
        >>> before = layer.weight.item()
        >>> _ = layer.weight.data.fill_(float("nan"))
        >>> snapshot.restore()
        >>> layer.weight.item() == before
        True
    """

    def __init__(self, source: Source, shares: Shares | None = None) -> None:
        self.source, self.shares = source, shares or Shares(torch.device("cpu"))
        self._host: dict[str, Share] = {}
        self._arena: Arena | None = None
        self._plain: dict[str, Any] = {}
        self._nest = Nest()
        self._transfer = HostTransfer()
        self.fingerprint: list[Tensor] = []
        """Of the latest `take`, where ranks divide it; see `Shares.fingerprint`."""
        self._origins, self._homes = Origins(), Homes()

    @property
    def bytes(self) -> int:
        """The host memory that it takes on this rank."""
        return sum(kept.bytes for kept in self._host.values()) + bytes_of(self._plain)

    @torch.no_grad()
    def take(self, found: Live | None = None) -> None:
        """Copies the source as it is now; `found`: what `source.live()` has just returned, if it was called already."""
        if found is None:
            self.source.settle()
        tensors, plain, steady = found or self.source.live()
        live = {key: local(tensor.detach()) for key, tensor in tensors.items()}
        self.wait()
        self._plain = {}
        self._make(self.shares.plan(live), pinned=any(tensor.is_cuda for tensor in live.values()))
        # what forward passes and hooks may write is copied at once; the rest, which only an optimizer's step writes
        # and only an optimizer's state grows with, while the next batch runs
        for late in (False, True):
            chosen = [(kept, kept.whole, live[key]) for key, kept in self._host.items() if (key in steady) == late]
            pairs = [
                (kept.data, flat(tensor)[kept.lo : kept.hi]) if whole is None else (whole, tensor)
                for kept, whole, tensor in chosen
                if kept.hi > kept.lo
            ]
            self._transfer.copy([into for into, _ in pairs], [tensor for _, tensor in pairs], aside=late)
        self._plain = self._nest.keep(plain, self._transfer)
        self._origins.remember(tensors, self.source.optimizers)
        self._homes.remember(tensors, self.source.optimizers)
        self.fingerprint = self.shares.fingerprint(live) if self.shares.divides else []

    def fence(self) -> None:
        """Makes work that the devices get from here on wait until the latest `take` has read; without a host sync."""
        self._transfer.fence()

    @torch.no_grad()
    def adopt(self) -> None:
        """Takes in parameters that an optimizer has only now: they were frozen, so they are as they were at `take`."""
        self.wait()
        parameters = self.source.parameters()
        self._take_up(self._origins.renames(parameters))
        for key, parameter in parameters.items():
            if key not in self._host:
                value = local(parameter.detach())
                (kept,) = Shares(self.shares.device).plan({key: value}).values()
                self._host[key] = kept._replace(data=flat(value).to("cpu", copy=True))
                self._origins.add(key, parameter)

    def lacking(self) -> list[str]:
        """The names of the trained parameters that it can't give back: none of their size was copied."""
        parameters = self.source.parameters()
        self._take_up(self._origins.renames(parameters))
        return [
            key.split("/", 2)[2]
            for key, p in parameters.items()
            if key not in self._host or self._host[key].shape != local(p.detach()).shape
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the source back in place, bit for bit; optimizer state that did not exist is removed again.

        Where ranks have shares, all call it. A parameter it has no copy of stays as it is (see `lacking`). A metric
        that was reset since (a new epoch) is reset. An average that is left empty begins with the weights given back.
        """
        begun = [bool(average.count) for average in self.source.averages]
        self._write(own=False)
        for index, average in enumerate(self.source.averages):
            if kept := self._host.get(f"average/{index}"):
                average.count = kept.data.view(())
            if begun[index] and not average.count:
                average.add(self.source.modules[0])
        for name, metric in self.source.metrics():
            count, held = self._plain.get(f"metric/{name}", (0, {}))
            if metric_updates(metric) < count or not held:
                metric.reset()
                continue
            set_metric(metric, count, on_devices(held, metric.device))
        self.source.resets()

    def forget_metric(self, name: str) -> None:
        """A torchmetric was reset: what it held belongs to another epoch."""
        self._plain[f"metric/{name}"] = [0, {}]

    @torch.no_grad()
    def show(self) -> None:
        """Writes parameters and buffers of the model itself over those in place; as `restore`, on all ranks.

        Optimizer state, averaged models, torchmetrics and the gradient scaler are left alone.
        """
        self._write(own=True)

    def _make(self, plan: dict[str, Share], *, pinned: bool) -> None:
        """Makes the memory, unless what there is serves."""
        if self._arena is None or not alike(plan, self._host):
            # what can't be used again goes first: never is there more than what is held at the end
            self._host, self._arena = {}, None
            self._host, self._arena = allocated(plan, pinned=pinned)

    def _write(self, *, own: bool) -> None:
        self.wait()
        self._rename()
        if not own:
            self.source.forget([*self._host, *self._plain])
        live = {k: local(t.detach()) for k, t in {**self.source.named(), **self.source.tensors()}.items()}
        held = {key: kept for key, kept in self._host.items() if not own or key.startswith(OWN)}
        there = {key: live[key] for key, kept in held.items() if key in live and kept.shape == live[key].shape}
        whole: dict[str, Any] = {key: kept.whole for key, kept in held.items() if kept.start < 0}
        if pairs := [(there[key], tensor) for key, tensor in whole.items() if key in there]:
            foreach_copy([a for a, _ in pairs], [b for _, b in pairs])
        if divided := {key: kept for key, kept in held.items() if kept.start >= 0}:
            for key, kept in divided.items():
                if key.startswith(MEMORY) and key not in there:
                    # thrown away since: it is made anew from this
                    whole[key] = torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype)
            self.shares.gather(divided, {**whole, **{key: there[key] for key in divided if key in there}})
        values: dict[str, Callable[[Tensor | None], Any]] = {}
        for key, value in {**whole, **self._plain}.items():
            if not own and key.startswith(MEMORY) and key not in there:
                values[key] = partial(self._homes.remade, key, value, optimizers=self.source.optimizers)
        self.source.set(values)

    def free(self) -> None:
        """Gives its memory back."""
        self.wait()
        self._host, self._arena, self._plain, self._nest = {}, None, {}, Nest()

    def wait(self) -> None:
        """Waits until the host memory holds what the last `take` copied."""
        self._transfer.wait()

    def state_dict(self) -> dict[str, Any]:
        """The copy, for a checkpoint, by the names of now: tensors, numbers, lists and dicts.

        The tensors are the copy's own, until the next `take`: save them, or clone them, before that. Of a rank that has
        a share only, those that it has whole.
        """
        self.wait()
        self._rename()
        whole = {key: kept.whole for key, kept in self._host.items()}
        plain = map_tensors(self._plain, lambda held: held.tensor if isinstance(held, Parked) else held)
        return {"tensors": {k: v for k, v in whole.items() if v is not None}, "plain": plain}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave on a rank that had all of it; of what is divided, this rank's share."""
        self.wait()
        named = {**self.source.named(), **self.source.tensors()}
        self._make(self.shares.plan(state["tensors"]), pinned=any(tensor.is_cuda for tensor in named.values()))
        for key, kept in self._host.items():
            kept.data.copy_(flat(state["tensors"][key])[kept.lo : kept.hi])
        self._plain = on_host(state["plain"])
        held = {key: tensor for key, tensor in self.source.named().items() if key in self._host}
        self._origins.remember(held, self.source.optimizers)
        # a checkpoint doesn't say on which devices optimizer state lived
        self._homes = Homes()

    def fits(self, state: dict[str, Any]) -> bool:
        """Whether the source has all that `state_dict` gave, in the same sizes, and no trained parameter besides."""
        saved, copied = state["tensors"], self.source.tensors()
        live = {**self.source.named(), **copied}
        return all(
            local(live[key].detach()).shape == tensor.shape if key in live else not key.startswith("parameter/")
            for key, tensor in saved.items()
        ) and all(key in saved for key in copied if key.startswith("parameter/"))

    def __getstate__(self) -> dict[str, Any]:
        # references to live tensors can't be pickled: elsewhere, names have to do
        return {**self.__dict__, "_origins": Origins(), "_arena": None, "_nest": Nest(), "_transfer": HostTransfer()}

    def _rename(self) -> None:
        """Gives all that is kept the keys that its tensors have now."""
        self._take_up(self._origins.renames(self.source.named()))
        self._take_up(self._origins.slot_renames(self.source.optimizers))

    def _take_up(self, renames: list[Rename]) -> None:
        for rename in renames:
            self._host, self._plain = rename(self._host), rename(self._plain)
            self._homes.rename(rename)
