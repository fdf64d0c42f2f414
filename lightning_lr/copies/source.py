"""Source: all that an optimizer's update changes, found anew at each call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_lr.copies.optimizer_memory import entries, nested, slots, states
from lightning_lr.copies.shares import writable
from lightning_lr.internals import Average, metric_states, metric_updates, scaler_tensors

SAMPLE = 16
"""Elements of a frozen parameter that are compared: code that writes one by hand writes all of it."""


class Live(NamedTuple):
    """All that is copied, by key; nothing is copied yet.

    Args:
        tensors: all tensors but those within lists and dicts.
        plain: all else.
        steady: the keys of what only an optimizer's step writes, unless the user's code writes it by hand.
    """

    tensors: dict[str, Tensor]
    plain: dict[str, Any]
    steady: set[str]

    @property
    def uneven(self) -> bool:
        """Whether lists are among them, which may be longer on one rank than on another; every rank says the same."""
        states = (value[1].values() if key.startswith("metric/") else [value] for key, value in self.plain.items())
        return any(isinstance(value, (list, tuple)) for held in states for value in held)


class Source:
    """Finds all that a snapshot holds, anew at each call: optimizers make state late, and models gain parameters.

    Parameters that no optimizer has and that need no gradient are left out, until `notice` finds that the run writes
    them itself (a teacher, a target network).

    Args:
        modules: the model, and others that are copied along.
        optimizers: whose memory is copied, and that of optimizers within them; the settings of their groups are not.
        scaler: a gradient scaler, or None.
        averages: of the model's weights; copied along.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        scaler: Any = None,
        averages: Sequence[Average] = (),
    ) -> None:
        self.modules, self.optimizers, self.scaler = list(modules), list(optimizers), scaler
        self.averages = list(averages)
        self.modules += [average.model for average in averages]
        self._written: set[str] = set()
        self._begun: list[tuple[dict[Any, Any], str]] = []
        self._counts: dict[str, tuple[Metric, int]] = {}
        self._samples = self._sampled()

    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters that change, by key."""
        held = {id(p) for o in self.optimizers for group in o.param_groups for p in group["params"]}
        return {
            f"parameter/0/{name}": p
            for name, p in self.modules[0].named_parameters()
            if (p.requires_grad or id(p) in held or name in self._written) and writable(p)
        }

    def notice(self) -> bool:
        """Looks whether frozen parameters have been written since the start; True if more than were known.

        Sharded ones are not looked at: ranks must not differ in what they find.
        """
        found = {name for name, few in self._sampled().items() if not torch.equal(few, self._samples.get(name, few))}
        self._written |= found
        return bool(found)

    @torch.no_grad()
    def _sampled(self) -> dict[str, Tensor]:
        """A few elements of each parameter that isn't known to change, in host memory."""
        known = self.parameters()
        # one wait for each device and type, not one for each parameter
        kinds: dict[Any, dict[str, Tensor]] = {}
        for name, p in self.modules[0].named_parameters():
            fit = writable(p) and not p.is_meta and not hasattr(p, "to_local") and p.numel() > 0
            if f"parameter/0/{name}" in known or not fit:
                continue
            few = p.detach().flatten()[:: max(1, p.numel() // SAMPLE)][:SAMPLE].clone()
            kinds.setdefault((p.device, p.dtype), {})[name] = few
        found: dict[str, Tensor] = {}
        for parts in kinds.values():
            pieces = torch.cat(list(parts.values())).cpu().split([len(few) for few in parts.values()])
            found.update(zip(parts, pieces, strict=True))
        return found

    def named(self) -> dict[str, Tensor]:
        """All parameters, trained or not, and all buffers, by key; but none that can't be written in place."""
        found: dict[str, Tensor] = {}
        for index, module in enumerate(self.modules):
            found.update((f"parameter/{index}/{name}", p) for name, p in module.named_parameters())
            found.update((f"buffer/{index}/{name}", b) for name, b in module.named_buffers())
        return {key: tensor for key, tensor in found.items() if writable(tensor)}

    def live(self) -> Live:
        """All that is copied, as it is now."""
        trained = self.parameters()
        tensors = {k: t for k, t in self.named().items() if k in trained or not k.startswith("parameter/0/")}
        plain: dict[str, Any] = {}
        steady = {key for key in trained if key.split("/", 2)[2] not in self._written}
        for key, _, _, value in self._memory():
            if not isinstance(value, Tensor):
                plain[key] = value
            elif writable(value):
                tensors[key] = value
            if key.startswith("optimizer/"):
                steady.add(key)
        tensors.update((f"scaler/{name}", tensor) for name, tensor in scaler_tensors(self.scaler))
        tensors.update((f"average/{index}", average.count) for index, average in enumerate(self.averages))
        self._counts = {name: (metric, metric_updates(metric)) for name, metric in self.metrics()}
        for name, (metric, updates) in self._counts.items():
            plain[f"metric/{name}"] = [updates, metric_states(metric)]
        return Live(tensors, plain, steady)

    def tensors(self) -> dict[str, Tensor]:
        """All live tensors that are copied, by key."""
        return self.live().tensors

    def resets(self) -> list[str]:
        """The names of the torchmetrics that have fewer updates than when they were last looked at."""
        if not self._counts:
            return []
        found = [name for name, (metric, updates) in self._counts.items() if metric_updates(metric) < updates]
        self._counts = {name: (metric, metric_updates(metric)) for name, (metric, _) in self._counts.items()}
        return found

    def metrics(self) -> Iterator[tuple[str, Metric]]:
        """The torchmetrics inside the model."""
        return ((name, m) for name, m in self.modules[0].named_modules() if isinstance(m, Metric))

    def layout(self) -> dict[str, Any]:
        """Classes of the optimizers, and their params' names by group: a copy fits only a run with the same ones."""
        names = {id(p): name for name, p in self.modules[0].named_parameters()}
        return {
            place: [type(o).__name__, [[names.get(id(p), "") for p in group["params"]] for group in o.param_groups]]
            for place, o in nested(self.optimizers).items()
        }

    def set(self, values: dict[str, Callable[[Tensor | None], Any]]) -> None:
        """Puts values where optimizers keep them; a key that no longer has a place is left out.

        Args:
            values: by `optimizer/...` and `group/...` keys; called with the parameter whose state it is, or None.
        """
        optimizers, held = nested(self.optimizers), slots(self.optimizers)
        for key, value in values.items():
            kind, at, number, name = key.split("/", 3)
            if kind == "group":
                groups = optimizers[at].param_groups if at in optimizers else []
                if int(number) < len(groups):
                    groups[int(number)][name] = value(None)
            elif number == "own":
                if at in optimizers:
                    optimizers[at].state[name] = value(None)  # pyright: ignore[reportArgumentType]
            elif (parameter := held.get(at, {}).get(f"{kind}/{at}/{number}")) is not None:
                own = optimizers[at].state[parameter]
                # what is there goes first: a device may have no room for both
                own[name] = None
                own[name] = value(parameter)

    def forget(self, known: Iterable[str]) -> None:
        """Removes what optimizers did not have then: state under a key that is not known, and counts that an optimizer
        without state has started in its param groups."""
        known, optimizers = set(known), nested(self.optimizers)
        begun = {key.split("/", 2)[1] for key in known if key.startswith("optimizer/")}
        groups = {tuple(key.split("/", 3)[1:3]) for key in known if key.startswith("group/")}
        told = {place for place, _ in groups}
        emptied = []
        for key, holder, name, value in list(self._memory()):
            if key in known:
                continue
            if key.startswith("optimizer/") and type(value) is int:
                # LBFGS, in whose step this may be, goes on counting after its closure
                holder[name] = 0
                self._begun.append((holder, name))
            elif key.startswith("optimizer/"):
                del holder[name]
                emptied.append(id(holder))
            elif type(value) is int:
                _, place, number, _ = key.split("/", 3)
                # a group that came later has it from who added it
                later = place in told and (place, number) not in groups
                if place not in begun and not later and name not in optimizers[place].defaults:
                    del holder[name]
        for optimizer in optimizers.values():
            for p in [p for p, own in optimizer.state.items() if id(own) in emptied and not own]:
                del optimizer.state[p]

    def settle(self) -> None:
        """After the step in which `forget` was called: removes the counts that had only been set to zero."""
        begun, self._begun = self._begun, []
        if not begun:
            return
        for holder, name in begun:
            holder.pop(name, None)
        emptied = {id(holder) for holder, _ in begun if not holder}
        for optimizer in nested(self.optimizers).values():
            for p in [p for p, own in optimizer.state.items() if id(own) in emptied]:
                del optimizer.state[p]

    def _memory(self) -> Iterator[tuple[str, dict[Any, Any], str, Any]]:
        yield from states(self.optimizers)
        yield from entries(self.optimizers)
