"""Divergence state: what the divergence policy takes, remembers and answers; plain numbers throughout."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from lightning_lr.saved import fields

Kind = Literal["accept", "skip", "rewind", "give_up"]


class Signals(NamedTuple):
    """What is known about one optimizer update before it is applied; equal on every rank.

    Args:
        loss: the mean loss over micro-batches and ranks, unscaled.
        grad_norm: the 2-norm of the whole gradient before clipping, >= 0.
        finite: False when any rank saw a loss or a gradient that is not finite.
        rate: the rate that the run would have without the guard (the largest of all groups), > 0. Its unit is free, it
            only has to stay the same through the run.
        weight_change: the relative distance `|w - v| / |v|` between the weights now and those of the newest snapshot;
            None where it was not measured.
        weight_age: the optimizer updates between the two, >= 1 where `weight_change` is given.
        drift: the same against the oldest weights that the run still builds on, its start or the last rewind's
            snapshot.
        drift_age: the optimizer updates between those.
    """

    loss: float
    grad_norm: float = 0.0
    finite: bool = True
    rate: float = 1.0
    weight_change: float | None = None
    weight_age: int = 0
    drift: float | None = None
    drift_age: int = 0


class Verdict(NamedTuple):
    """What to do with the update at hand.

    Args:
        kind: `accept` (apply it), `skip` (drop its gradients), `rewind` (drop them and give back the newest snapshot
            whose label is at most `healthy_before`), `give_up` (the same, and end the run).
        factor: multiplies the rate from this update on, in (0, 1].
        healthy_before: snapshots taken at or before this update are proven healthy. A snapshot is labelled with
            `DivergenceState.update` at the time when it is taken.
        cause: why, in words; empty for `accept`.
        measure: True when the next signals should hold a `weight_change`, whatever it costs.
        threshold: the limit that was broken, in the loss's unit; None where there was none.
    """

    kind: Kind
    factor: float = 1.0
    healthy_before: int = 0
    cause: str = ""
    measure: bool = False
    threshold: float | None = None


class Block(NamedTuple):
    """A few accepted updates in a row.

    Args:
        update: the number of the last of them.
        losses: their losses, logarithmic where the run's losses are all positive.
        norms: the logarithms of their gradient norms.
        rate: the largest effective rate among them.
        change: the largest weight change measured in them, divided by the square root of its age; 0.0 for none.
    """

    update: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]
    rate: float
    change: float


class Memory(NamedTuple):
    """What only a review, a rewind or a shift of level changes.

    Args:
        blocks: the blocks of accepted updates that make up the window, oldest first.
        linear: True once a loss below 0 was accepted: losses are then compared as they are, not by their logarithm.
        zero: is added to a loss before its logarithm is taken; 0.0 before the first accepted update.
        unit: what one natural logarithm is worth in the unit of the losses (1.0 where they are logarithmic).
        initial: the level of the loss before anything was learned; None before the first accepted update.
        first: the first loss after the start, or after a rewind to it; None once harder data made the level a new one.
        best: the lowest level at a review so far; None before the first.
        best_rate: the largest effective rate in the block before it.
        climbs: reviews in a row whose level lay far above the best.
        proven: snapshots up to this update are healthy.
        anchor: the label of the snapshot that `drift` is measured against.
        pace: the largest weight change of healthy updates, by the square root of its age; 0.0 before the first.
        top_rate: the largest effective rate of healthy updates; 0.0 before the first.
        cap: the largest effective rate allowed now; inf for none.
        cap_before: the cap from before the last rewind, should the data turn out to be the reason for it.
        ceiling: what the cap may grow back to; inf for none.
        gate: the cap only grows while the weight change, by the square root of its age, is no more than this.
        failed_rate: the lowest effective rate that the run failed at; inf for none.
        rewinds: rewinds since the last lasting progress.
        all_rewinds: rewinds of the whole run.
        since_rewind: reviewed updates since the last rewind.
    """

    blocks: tuple[Block, ...] = ()
    linear: bool = False
    zero: float = 0.0
    unit: float = 1.0
    initial: float | None = None
    first: float | None = None
    best: float | None = None
    best_rate: float = 0.0
    climbs: int = 0
    proven: int = 0
    anchor: int = 0
    pace: float = 0.0
    top_rate: float = 0.0
    cap: float = math.inf
    cap_before: float = math.inf
    ceiling: float = math.inf
    gate: float = math.inf
    failed_rate: float = math.inf
    rewinds: int = 0
    all_rewinds: int = 0
    since_rewind: int = 0


class DivergenceState(NamedTuple):
    """What the policy remembers between two updates.

    Args:
        update: updates judged so far, skipped ones included: the clock of all the other fields.
        losses: the losses accepted since the last review.
        norms: the logarithms of the gradient norms accepted since the last review.
        rate: the largest effective rate since the last review.
        change: the largest weight change since then, divided by the square root of its age.
        loss_spike: a loss above this is a spike; None before the first accepted update.
        loss_alarm: a few losses in a row above this are an alarm.
        norm_spike: a gradient norm above this is a spike.
        spikes: spikes in a row.
        nonfinite: updates in a row that were not finite.
        high: losses in a row above `loss_alarm`.
        memory: what changes more seldom.
    """

    update: int = 0
    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    rate: float = 0.0
    change: float = 0.0
    loss_spike: float = math.inf
    loss_alarm: float = math.inf
    norm_spike: float = math.inf
    spikes: int = 0
    nonfinite: int = 0
    high: int = 0
    memory: Memory = Memory()

    def again(self) -> DivergenceState:
        """The state from which a run that was given up goes on: no rewind and no bad update counts against it."""
        memory = self.memory._replace(rewinds=0, since_rewind=0)
        return self._replace(spikes=0, nonfinite=0, high=0, memory=memory)

    def to_dict(self) -> dict[str, Any]:
        """A dict of numbers, lists and dicts, for a checkpoint."""
        memory = self.memory._asdict()
        memory["blocks"] = [[b.update, list(b.losses), list(b.norms), b.rate, b.change] for b in self.memory.blocks]
        own = self._asdict()
        return {"version": 1, **own, "losses": list(self.losses), "norms": list(self.norms), "memory": memory}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> DivergenceState:
        """The state that `to_dict` gave.

        Raises:
            SavedStateError: for a version that this release doesn't know.
        """
        own = fields(saved, 1, cls)
        memory = dict(own["memory"])
        blocks = tuple(Block(u, tuple(x), tuple(g), rate, change) for u, x, g, rate, change in memory["blocks"])
        own["losses"], own["norms"] = tuple(own["losses"]), tuple(own["norms"])
        return cls(**{**own, "memory": Memory(**{**memory, "blocks": blocks})})
