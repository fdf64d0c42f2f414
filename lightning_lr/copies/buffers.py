"""Buffers: running statistics as they were before a batch that may turn out to be bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lr.copies.shares import writable
from lightning_lr.internals import buffers_of, foreach_copy


class Buffers:
    """Copies of a model's buffers from before the forward passes of the latest updates, on their device.

    Args:
        module: whose; by name, since a module may put another tensor there.
        back: to how many updates back they can be given back, >= 1.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> kept = Buffers(norm)
        >>> kept.keep()
        >>> _ = norm(torch.ones(4, 2))
        >>> kept.restore()
        >>> norm.running_mean.tolist()
        [0.0, 0.0]
    """

    def __init__(self, module: nn.Module, back: int = 1) -> None:
        self._held = [held for part in module.modules() if (held := buffers_of(part))]
        self._places = self._named()
        self._back = back
        self.count = 0
        """How often they were kept."""
        self._sets: list[list[Tensor | None]] = []

    def keep(self) -> None:
        """Copies them as they are now; the memory of the oldest set is reused."""
        self.count += 1
        if self._held:
            self._keep()

    @torch.no_grad()
    def _keep(self) -> None:
        # a module may have given one up (a parametrisation that was removed)
        self._places = self._named()
        live = [buffers[name] for buffers, name in self._places]
        oldest = self._sets.pop() if len(self._sets) == self._back else []
        self._sets.insert(0, _copied(oldest if len(oldest) == len(live) else live, live))

    @torch.no_grad()
    def restore(self, back: int = 1) -> None:
        """Gives back what they were before the latest update, or `back` updates ago; all later sets become this one."""
        back = min(back, len(self._sets))
        if not back or len(self._sets[back - 1]) != len(self._places):
            return
        kept = self._sets[back - 1]
        # one that is gone stays away
        there = [
            (buffers, name, buffer)
            for (buffers, name), buffer in zip(self._places, kept, strict=True)
            if name in buffers
        ]
        given = _copied([buffers[name] for buffers, name, _ in there], [buffer for *_, buffer in there])
        for (buffers, name, _), buffer in zip(there, given, strict=True):
            buffers[name] = buffer
        for place, later in enumerate(self._sets[: back - 1]):
            if len(later) == len(kept):
                self._sets[place] = _copied(later, kept)

    def free(self) -> None:
        """Gives the memory back."""
        self._sets = []

    def state_dict(self) -> list[list[Tensor | None]]:
        """The sets, latest first."""
        return [[None if buffer is None else buffer.clone() for buffer in kept] for kept in self._sets]

    def load_state_dict(self, saved: list[list[Tensor | None]]) -> None:
        """Takes up what `state_dict` gave, as far as it fits."""
        live = [buffers[name] for buffers, name in self._places]
        if any(len(kept) != len(live) for kept in saved):
            return
        self._sets = [[_beside(a, b) for a, b in zip(kept, live, strict=True)] for kept in saved]

    def _named(self) -> list[tuple[dict[str, Any], str]]:
        return [(buffers, name) for buffers in self._held for name in buffers]


def _beside(saved: Tensor | None, live: Tensor | None) -> Tensor | None:
    return saved if saved is None or live is None else saved.to(live.device, copy=True)


def _copied(into: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Values written into tensors in place; new copies where that isn't possible.

    What can't be written in place can only be replaced: it is its own copy.
    """
    found, targets, sources = list(into), [], []
    for place, (target, value) in enumerate(zip(into, values, strict=True)):
        if value is None or not writable(value):
            found[place] = value
        elif target is not None and target is not value and _alike(target, value) and writable(target):
            targets.append(target)
            sources.append(value)
        else:
            found[place] = value.clone()
    if targets:
        foreach_copy(targets, sources)
    return found


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype is b.dtype
