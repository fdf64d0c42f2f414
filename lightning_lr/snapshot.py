"""Snapshot: a copy in host memory of all that an optimizer's update changes, to be given back bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import (
    Tensor,
    _foreach_copy_,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_norm,  # pyright: ignore[reportPrivateImportUsage]
    _foreach_sub,  # pyright: ignore[reportPrivateImportUsage]
    nn,
)
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_lr.shards import local, pieces

RATES = ("params", "lr", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")
"""Settings of a param group that belong to the user, the scheduler or the ledger; so do all in `optimizer.defaults`."""

LEAST_SCALE = 0.01
"""Added to the root mean square of the weights in a relative change: against weights of zero, none is meaningful."""


class Source:
    """Finds all that a snapshot holds, anew at each call: optimizers make state late, and models gain parameters.

    Parameters that no optimizer has and that need no gradient are left out: nobody changes them.

    Args:
        modules: the model, and copies of it that are kept along (averaged weights).
        optimizers: whose state is copied; the settings of their groups are not, except for those that an optimizer
            keeps there as its own memory.
        scaler: a gradient scaler, or None.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], scaler: Any = None) -> None:
        self.modules, self.optimizers, self.scaler = list(modules), list(optimizers), scaler

    def parameters(self) -> dict[str, Tensor]:
        """The model's trained parameters, by key."""
        held = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        return {
            f"parameter/0/{name}": p
            for name, p in self.modules[0].named_parameters()
            if p.requires_grad or id(p) in held
        }

    def tensors(self) -> dict[str, Tensor]:
        """All live tensors, by key."""
        found: dict[str, Tensor] = dict(self.parameters())
        for index, module in enumerate(self.modules):
            if index:
                found.update((f"parameter/{index}/{name}", p) for name, p in module.named_parameters())
            found.update((f"buffer/{index}/{name}", b) for name, b in module.named_buffers())
        for key, _, value in self._optimizer_state():
            if isinstance(value, Tensor):
                found[key] = value
        for name in ("_scale", "_growth_tracker"):
            value = getattr(self.scaler, name, None)
            if isinstance(value, Tensor):
                found[f"scaler/{name}"] = value
        return found

    def plain(self) -> dict[str, Any]:
        """All live values that are no tensors, copied, by key."""
        found = {k: deepcopy(v) for k, _, v in self._optimizer_state() if not isinstance(v, Tensor)}
        for index, optimizer in enumerate(self.optimizers):
            for number, group in enumerate(optimizer.param_groups):
                for name, value in group.items():
                    if name not in RATES and name not in optimizer.defaults and isinstance(value, (int, float)):
                        found[f"group/{index}/{number}/{name}"] = value
        for name, metric in self.metrics():
            states = {key: _cloned(getattr(metric, key)) for key in metric._defaults}
            found[f"metric/{name}"] = [metric._update_count, states]
        return found

    def metrics(self) -> Iterator[tuple[str, Metric]]:
        """The torchmetrics inside the model."""
        return ((name, m) for name, m in self.modules[0].named_modules() if isinstance(m, Metric))

    def place(self, key: str) -> tuple[dict[str, Any], str]:
        """The dict and the name under which an optimizer keeps the value of an `optimizer/...` key."""
        _, index, number, name = key.split("/", 3)
        parameters = [p for group in self.optimizers[int(index)].param_groups for p in group["params"]]
        return self.optimizers[int(index)].state[parameters[int(number)]], name

    def forget(self, known: Iterable[str]) -> None:
        """Removes optimizer state whose key isn't among the known ones: it did not exist then."""
        known = set(known)
        gone = [(key, p) for key, p, _ in self._optimizer_state() if key not in known]
        for key, p in gone:
            state = self.optimizers[int(key.split("/", 2)[1])].state
            del state[p][key.split("/", 3)[3]]
            if not state[p]:
                del state[p]

    def _optimizer_state(self) -> Iterator[tuple[str, Tensor, Any]]:
        for index, optimizer in enumerate(self.optimizers):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, p in enumerate(parameters):
                for name, value in optimizer.state.get(p, {}).items():
                    yield f"optimizer/{index}/{number}/{name}", p, value


class Snapshot:
    """One copy of a source. Its memory is made at the first `take` and used again at the next.

    It copies each rank's own shard. From an accelerator it copies without waiting, into pinned memory.

    Args:
        source: what is copied, and given back.

    Example:
        >>> layer = nn.Linear(1, 1)
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
        self._event: Any = None

    @property
    def bytes(self) -> int:
        """The host memory that the tensors take."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._host.values())

    @torch.no_grad()
    def take(self) -> None:
        """Copies the source as it is now."""
        live = {key: local(tensor.detach()) for key, tensor in self.source.tensors().items()}
        self.wait()
        host = {}
        for key, tensor in live.items():
            kept = self._host.get(key)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            host[key] = kept
        self._host = host
        if live:
            _foreach_copy_(list(host.values()), list(live.values()), non_blocking=True)
        if any(tensor.is_cuda for tensor in live.values()):
            self._event = torch.cuda.Event()
            self._event.record()
        self._plain = self.source.plain()

    @torch.no_grad()
    def adopt(self) -> None:
        """Takes in parameters that an optimizer has only now: frozen until here, they are as they were at `take`."""
        self.wait()
        for key, parameter in self.source.parameters().items():
            if key not in self._host:
                self._host[key] = local(parameter.detach()).to("cpu", copy=True)

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the source back in place, bit for bit; optimizer state that did not exist is removed again.

        A metric that was reset since (a new epoch) is reset instead: what it held belongs to another epoch.
        """
        self.wait()
        self.source.forget([*self._host, *self._plain])
        live = self.source.tensors()
        there = [key for key in self._host if key in live]
        if there:
            _foreach_copy_([local(live[key].detach()) for key in there], [self._host[key] for key in there])
        for key, tensor in self._host.items():
            if key not in live and key.startswith("optimizer/"):
                state, name = self.source.place(key)
                state[name] = tensor.clone()
        for key, value in self._plain.items():
            if key.startswith("optimizer/"):
                state, name = self.source.place(key)
                state[name] = deepcopy(value)
            elif key.startswith("group/"):
                _, index, number, name = key.split("/", 3)
                self.source.optimizers[int(index)].param_groups[int(number)][name] = value
        for name, metric in self.source.metrics():
            count, states = self._plain.get(f"metric/{name}", (0, {}))
            if metric._update_count < count or not states:
                metric.reset()
                continue
            for key, value in states.items():
                setattr(metric, key, _cloned(value))
            metric._update_count, metric._computed = count, None

    @torch.no_grad()
    def change(self) -> tuple[Tensor, Tensor]:
        """How far the parameters have moved since `take`: this rank's share, to be added over the ranks.

        A parameter that `n` ranks hold alike counts by `1 / n` on each, so that the sum over all ranks is that of the
        whole model.

        Returns:
            The squared distance, and the squared norm of the copy (with `LEAST_SCALE`); Tensors, shape (), float64.
        """
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.wait()
        moved: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for key, parameter in self.source.parameters().items():
            kept = self._host.get(key)
            if kept is not None:
                now = local(parameter.detach())
                moved.setdefault(pieces(parameter), []).append((now, kept.to(now.device, non_blocking=True)))
        far, size = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        for count, pairs in moved.items():
            now, kept = [a for a, _ in pairs], [b for _, b in pairs]
            least = LEAST_SCALE**2 * sum(b.numel() for b in kept)
            distances = torch.stack([d.double() for d in _foreach_norm(_foreach_sub(now, kept))])
            norms = torch.stack([d.double() for d in _foreach_norm(kept)])
            far = far.to(distances.device) + distances.square().sum() * (count / ranks)
            size = size.to(norms.device) + (norms.square().sum() + least) * (count / ranks)
        return far, size

    def wait(self) -> None:
        """Waits until the host memory holds what the last `take` copied."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None

    def state_dict(self) -> dict[str, Any]:
        """A copy of the copy, for a checkpoint: tensors, numbers, lists and dicts."""
        self.wait()
        return {"tensors": {k: v.clone() for k, v in self._host.items()}, "plain": deepcopy(self._plain)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._host = {key: tensor.clone() for key, tensor in state["tensors"].items()}
        self._plain = deepcopy(state["plain"])


def _cloned(value: Any) -> Any:
    return [item.clone() for item in value] if isinstance(value, list) else value.clone()
