"""Snapshot: a copy in host memory of all that an optimizer's update changes, to be given back bit for bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_lr.internals import foreach_copy, metric_updates, set_metric
from lightning_lr.memory import bytes_of, nested, slots
from lightning_lr.shards import local
from lightning_lr.source import Source

OWN, MEMORY = ("parameter/0/", "buffer/0/"), ("optimizer/", "group/")
"""Keys of the model's own tensors, and of what optimizers remember."""


class Snapshot:
    """One copy of a source. Its memory is made at the first `take` and used again at the next.

    It copies each rank's own shard. From an accelerator it copies without waiting, into pinned memory. It knows tensors
    again whose names have changed meanwhile (pruning, parametrisations).

    Args:
        source: what is copied, and given back.

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

    def __init__(self, source: Source) -> None:
        self.source = source
        self._host: dict[str, Tensor] = {}
        self._plain: dict[str, Any] = {}
        self._events: list[Any] = []
        self._origins: dict[str, dict[str, Any]] = {}
        self._apart: dict[str, torch.device] = {}

    @property
    def bytes(self) -> int:
        """The host memory that it takes."""
        return bytes_of(self._host) + bytes_of(self._plain)

    @torch.no_grad()
    def take(self) -> None:
        """Copies the source as it is now."""
        tensors = self.source.tensors()
        live = {key: local(tensor.detach()) for key, tensor in tensors.items()}
        self.wait()
        # what can't be used again goes first: never is there more than what is held at the end
        self._plain = {}
        self._host = {key: kept for key, kept in self._host.items() if key in live and _alike(kept, live[key])}
        for key, tensor in live.items():
            if key not in self._host:
                self._host[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if live:
            foreach_copy([self._host[key] for key in live], list(live.values()), non_blocking=True)
        self._events = _record({tensor.device for tensor in live.values() if tensor.is_cuda})
        self._plain = {key: _copied(value) for key, value in self.source.plain().items()}
        self._remember(tensors)

    @torch.no_grad()
    def adopt(self) -> None:
        """Takes in parameters that an optimizer has only now: frozen until here, they are as they were at `take`."""
        self.wait()
        parameters = self.source.parameters()
        self._rename("named", parameters)
        for key, parameter in parameters.items():
            if key not in self._host:
                self._host[key] = local(parameter.detach()).to("cpu", copy=True)
                self._origins.setdefault("named", {})[key] = parameter

    def lacking(self) -> list[str]:
        """The names of the trained parameters that it can't give back: none of their size was copied."""
        parameters = self.source.parameters()
        self._rename("named", parameters)
        return [
            key.split("/", 2)[2]
            for key, p in parameters.items()
            if key not in self._host or self._host[key].shape != local(p.detach()).shape
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the source back in place, bit for bit; optimizer state that did not exist is removed again.

        A parameter that it has no copy of stays as it is (see `lacking`). A metric that was reset since (a new epoch)
        is reset instead: what it held belongs to another epoch.
        """
        self._write(own=False)
        for name, metric in self.source.metrics():
            count, held = self._plain.get(f"metric/{name}", (0, {}))
            if metric_updates(metric) < count or not held:
                metric.reset()
                continue
            set_metric(metric, count, {key: _copied(value) for key, value in held.items()})

    @torch.no_grad()
    def show(self) -> None:
        """Writes parameters and buffers of the model itself over those in place: a trial's, that is.

        Optimizer state, averaged models, torchmetrics and the gradient scaler are left alone.
        """
        self._write(own=True)

    def _write(self, *, own: bool) -> None:
        self.wait()
        self._rename_all()
        if not own:
            self.source.forget([*self._host, *self._plain])
        live = {k: local(t.detach()) for k, t in {**self.source.named(), **self.source.tensors()}.items()}
        held = {key: kept for key, kept in self._host.items() if not own or key.startswith(OWN)}
        there = {key for key, kept in held.items() if key in live and kept.shape == live[key].shape}
        if there:
            foreach_copy([live[key] for key in there], [held[key] for key in there])
        values: dict[str, Callable[[Tensor | None], Any]] = {}
        for key, value in {**held, **self._plain}.items():
            if not own and key.startswith(MEMORY) and key not in there:
                values[key] = partial(self._made, key, value)
        self.source.set(values)

    def wait(self) -> None:
        """Waits until the host memory holds what the last `take` copied."""
        for event in self._events:
            event.synchronize()
        self._events = []

    def state_dict(self) -> dict[str, Any]:
        """A copy of the copy, for a checkpoint, by the names of now: tensors, numbers, lists and dicts."""
        self.wait()
        self._rename_all()
        return {"tensors": {k: v.clone() for k, v in self._host.items()}, "plain": deepcopy(self._plain)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.wait()
        self._host = {key: tensor.clone() for key, tensor in state["tensors"].items()}
        self._plain = deepcopy(state["plain"])
        self._remember({key: tensor for key, tensor in self.source.named().items() if key in self._host}, placed=False)

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
        return {**self.__dict__, "_origins": {}}

    def _remember(self, tensors: dict[str, Tensor], *, placed: bool = True) -> None:
        """Notes which tensor each key stands for, and which optimizer state lives apart from its parameter."""
        # a buffer is known only while somebody else has it too: modules may assign another at each step. A parameter
        # can't be had so: torch refuses to convert (`swap_tensors`) one that is referred to weakly
        named = {k: t for k, t in tensors.items() if k.startswith("parameter/")}
        buffers = {k: weakref.ref(t) for k, t in tensors.items() if k.startswith("buffer/")}
        held_by = slots(self.source.optimizers)
        self._origins = {"named": {**named, **buffers}, **held_by}
        homes: dict[str, torch.device] = {}
        for held in held_by.values():
            homes.update((key, p.device) for key, p in held.items())
        self._apart = {
            key: tensor.device
            for key, tensor in tensors.items()
            if placed
            and key.startswith(("optimizer/", "group/"))
            and tensor.device != homes.get(_owner(key)[0], torch.device("cpu"))
        }

    def _rename_all(self) -> None:
        self._rename("named", self.source.named())
        for place, held in slots(self.source.optimizers).items():
            self._rename(place, held)

    def _rename(self, kind: str, live: dict[str, Tensor]) -> None:
        """Gives what was copied from a tensor the key that this very tensor has now."""
        origins = self._origins.get(kind, {})
        keys = {id(tensor): key for key, tensor in live.items()}
        moved = {}
        for key, origin in origins.items():
            tensor = origin() if isinstance(origin, weakref.ref) else origin
            now = key if tensor is None else keys.get(id(tensor), key)
            if now != key:
                moved[key] = now
        if not moved:
            return
        # what stood under such a key, and isn't known again itself, is of something that is gone
        gone = set(moved.values()) - set(moved)

        def renamed(held: dict[str, Any]) -> dict[str, Any]:
            found = {}
            for key, value in held.items():
                owner, rest = (key, "") if kind == "named" else _owner(key)
                if owner not in gone:
                    found[moved.get(owner, owner) + rest] = value
            return found

        self._host, self._plain, self._apart = renamed(self._host), renamed(self._plain), renamed(self._apart)
        self._origins[kind] = renamed(origins)

    def _made(self, key: str, kept: Any, parameter: Tensor | None) -> Any:
        """What an optimizer remembered, anew; a tensor on the device where it lived."""
        if not isinstance(kept, Tensor):
            return deepcopy(kept)
        if key in self._apart:
            return kept.to(self._apart[key], copy=True)
        if parameter is None or self._counts_on_host(key, kept, parameter):
            return kept.clone()
        mine = local(parameter.detach())
        if hasattr(parameter, "to_local") and kept.shape == mine.shape:
            made = torch.zeros_like(parameter.detach(), dtype=kept.dtype)
            local(made).copy_(kept)
            return made
        return kept.to(mine.device, copy=True)

    def _counts_on_host(self, key: str, kept: Tensor, parameter: Tensor) -> bool:
        """torch's own rule for `step`, which optimizers keep on the host unless they are fused or capturable."""
        if not key.endswith("/step") or kept.device.type != "cpu":
            return False
        group = next(
            group
            for optimizer in nested(self.source.optimizers).values()
            for group in optimizer.param_groups
            if any(p is parameter for p in group["params"])
        )
        return not (group.get("fused") or group.get("capturable"))


def _owner(key: str) -> tuple[str, str]:
    """`optimizer/0/3`, and the rest of the key."""
    owner = "/".join(key.split("/", 3)[:3])
    return owner, key[len(owner) :]


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _record(devices: set[torch.device]) -> list[Any]:
    """An event for each device: one waits for one device's copies alone."""
    events = []
    for device in devices:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        events.append(event)
    return events


def _copied(value: Any) -> Any:
    """A deep copy; of tensors without their graph."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if type(value) is list else deepcopy(value)
