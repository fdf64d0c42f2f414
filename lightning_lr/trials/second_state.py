"""SecondState: another state of model and optimizers, to try something out with, kept apart from the healthy one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_lr.copies.optimizer_memory import SETTINGS, nested
from lightning_lr.copies.parked import Parked, beside, cloned, map_tensors, on_host, placed, swap
from lightning_lr.copies.shares import writable
from lightning_lr.internals import buffers_of, metric_memory
from lightning_lr.shards import local, reshard


class SecondState:
    """A second state of model and optimizers, beside the healthy one; only one of the two is in place at a time.

    The healthy tensors are never written: `enter` puts other storage under the same parameters, `leave` puts their own
    back, bit for bit. Where others hold on to the storage of parameters (DTensors, views of a bucket), values are
    exchanged instead. Both cost memory for one copy of weights, buffers and optimizer state on each rank, of
    its own shard.

    Args:
        module: its parameters, buffers and torchmetrics are covered.
        optimizers: their state and what they keep in their param groups, and those of optimizers within them.
        scaler: a gradient scaler, or None.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
        >>> healthy = net.weight.item()
        >>> second = SecondState(net, [optimizer])
        >>> second.enter(fresh=True)
        >>> net(torch.ones(1)).backward()
        >>> optimizer.step()
        >>> tried = net.weight.item()
        >>> second.leave()
        >>> net.weight.item() == healthy != tried, len(optimizer.state)
        (True, 0)
        >>> second.enter(fresh=False)
        >>> net.weight.item() == tried
        True
        >>> second.leave()
    """

    def __init__(self, module: nn.Module, optimizers: Iterable[Optimizer], scaler: Any = None) -> None:
        self._module, self._given, self._scaler = module, list(optimizers), scaler
        self._optimizers: list[Optimizer] = []
        self._viewed = False
        self.inside = self.parked = False
        self._sharded = reshard(module)
        self._tensors: dict[Tensor, Tensor] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._states: list[dict[Any, Any]] = []
        self._settings: list[list[dict[str, Any]]] = []
        self._all_metrics: list[Metric] = []
        self._metrics: list[tuple[Metric, dict[str, Any]]] = []
        self._scaler_state: dict[str, Any] = {}
        self._scaling = False

    def enter(self, *, fresh: bool, metrics: bool = True) -> None:
        """Puts the second state in place.

        Args:
            fresh: start from a copy of the healthy state; False: continue where the second state was left.
            metrics: whether it has torchmetrics of its own too; False: what is added to them stays.
        """
        if self.inside:
            raise RuntimeError("the trial's state is in place already")
        if fresh or not self._tensors:
            self._copy()
        # all memory is made before anything is exchanged: where it is short, nothing has happened
        copies = [{name: cloned(value) for name, value in held.items()} for held in self._memory(metrics)]
        self._exchange()
        self._metrics = list(zip(self._all_metrics, self._memory(metrics), strict=False))
        for metric, held in zip(self._all_metrics, copies, strict=False):
            for name, value in held.items():
                setattr(metric, name, value)
        self._exchange_scaler(True)
        self.inside = True

    def leave(self) -> None:
        """Puts the healthy state back; without effect when it is there. The scaler's is left to `end_batch`."""
        if not self.inside:
            return
        self._exchange()
        for metric, healthy in self._metrics:
            for name, value in healthy.items():
                setattr(metric, name, value)
        self._metrics = []
        self.inside = False

    def end_batch(self) -> None:
        """Puts everything else back: a gradient scaler is updated only after the optimizer's step."""
        self.leave()
        self._exchange_scaler(False)

    def state_dict(self) -> dict[str, Any]:
        """The second state while the healthy one is in place, in host memory: tensors, numbers, lists and dicts.

        On the device there may be no room for one more copy. A parked state stays parked.
        """
        states = [
            [on_host(states.get(p) or {}) for group in o.param_groups for p in group["params"]]
            for o, states in zip(self._optimizers, self._states, strict=True)
        ]
        return {
            "tensors": on_host(list(self._tensors.values())),
            "states": states,
            "own": [{k: on_host(v) for k, v in held.items() if isinstance(k, str)} for held in self._states],
            "settings": on_host(self._settings),
            "scaler": self._scaler_state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave, over a healthy state that is in place."""
        self._copy()
        for tensor, saved in zip(self._tensors, state["tensors"], strict=True):
            self._tensors[tensor].copy_(saved)
        for index, (optimizer, states) in enumerate(zip(self._optimizers, state["states"], strict=True)):
            held = [(p, group) for group in optimizer.param_groups for p in group["params"]]
            self._states[index] = {
                p: {name: placed(name, value, p, group) for name, value in cloned(saved).items()}
                for (p, group), saved in zip(held, states, strict=True)
                if saved
            }
            own, settings = cloned(state["own"][index]), cloned(state["settings"][index])
            self._states[index].update(beside(own, optimizer.state))
            groups = zip(settings, optimizer.param_groups, strict=True)
            self._settings[index] = [beside(saved, group) for saved, group in groups]
        self._scaler_state = dict(state["scaler"])

    def park(self) -> None:
        """Moves the second state to host memory while the healthy one is in place, to make room for another."""
        self._move(lambda value: value if isinstance(value, Parked) else Parked(value.to("cpu"), value.device))
        self.parked = True

    def unpark(self) -> None:
        """Moves the second state back to its devices."""
        self._move(lambda value: value.tensor.to(value.device) if isinstance(value, Parked) else value)
        self.parked = False

    def _move(self, move: Callable[[Any], Any]) -> None:
        self._tensors = {tensor: move(held) for tensor, held in self._tensors.items()}
        self._states = [{p: map_tensors(state, move) for p, state in states.items()} for states in self._states]
        self._settings = map_tensors(self._settings, move)

    def _copy(self) -> None:
        if self._sharded:
            reshard(self._module)
        self._all_metrics = [module for module in self._module.modules() if isinstance(module, Metric)]
        self._buffers = [
            (owner, name, buffer)
            for owner in self._module.modules()
            for name, buffer in buffers_of(owner).items()
            if buffer is not None
        ]
        tensors = dict.fromkeys([*self._module.parameters(), *(buffer for _, _, buffer in self._buffers)])
        with torch.no_grad():
            for tensor in tensors:
                healthy, held = local(tensor.detach()), self._tensors.get(tensor)
                fits = held is not None and held.shape == healthy.shape and held.dtype == healthy.dtype
                if held is not None and fits and writable(held):
                    held.copy_(healthy)
                else:
                    self._tensors[tensor] = healthy.clone()
            for gone in self._tensors.keys() - tensors.keys():
                del self._tensors[gone]
        # now, since an optimizer may make the one within it late
        self._optimizers = list(nested(self._given).values())
        self._viewed = any(getattr(o, "parameters_as_bucket_view", False) for o in self._optimizers)
        # what it has tried goes first: never are there two of them
        self._states = []
        self._states = [{p: cloned(state) for p, state in o.state.items()} for o in self._optimizers]
        self._settings = [
            [cloned({k: v for k, v in group.items() if k not in SETTINGS}) for group in o.param_groups]
            for o in self._optimizers
        ]
        if self._scaler is not None:
            self._scaler_state = self._scaler.state_dict()

    def _exchange(self) -> None:
        if self._sharded:
            reshard(self._module)
        for owner, name, buffer in self._buffers:
            replaced = buffers_of(owner).get(name)
            if replaced is not buffer:  # by a module that assigns its buffer anew
                if replaced is not None and replaced.shape == buffer.shape:
                    buffer.data = replaced.detach().to(buffer.dtype)
                buffers_of(owner)[name] = buffer
        with torch.no_grad():
            for tensor, other in self._tensors.items():
                shard = local(tensor.detach())
                if self._viewed or hasattr(tensor, "to_local"):
                    swap(shard, other)
                else:
                    self._tensors[tensor], tensor.data = tensor.data, other
        for index, optimizer in enumerate(self._optimizers):
            held = dict(optimizer.state)
            optimizer.state.clear()
            optimizer.state.update(self._states[index])
            self._states[index] = held
            for group, settings in zip(optimizer.param_groups, self._settings[index], strict=False):
                self._exchange_settings(group, settings)

    def _exchange_settings(self, group: dict[str, Any], settings: dict[str, Any]) -> None:
        """What the optimizer has begun to keep within the trial (a count of its updates) goes with it."""
        held = {k: v for k, v in group.items() if k not in SETTINGS and (k in settings or self.inside)}
        for key in held.keys() - settings.keys():
            del group[key]
        group.update(settings)
        settings.clear()
        settings.update(held)

    def _memory(self, metrics: bool) -> list[dict[str, Any]]:
        """The live states of all torchmetrics, if a batch gets copies of them that are thrown away."""
        return [metric_memory(metric) for metric in self._all_metrics] if metrics else []

    def _exchange_scaler(self, entering: bool) -> None:
        if self._scaler is None or self._scaling == entering:
            return
        held = self._scaler.state_dict()
        if held and self._scaler_state:
            self._scaler.load_state_dict(self._scaler_state)
        self._scaler_state, self._scaling = held, entering
