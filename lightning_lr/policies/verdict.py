"""Verdict: what `DivergencePolicy` takes (`Signals`) and answers for each update; plain numbers throughout."""

from __future__ import annotations

from typing import Literal, NamedTuple

Side = Literal["present", "newest", "best"]
"""The weights at which an update's batches are run: the run's own, or those of one of the two copies."""

Kind = Literal["accept", "drop", "hold", "rewind", "give_up"]
Outcome = Literal["", "passed", "data", "weights"]


class Signals(NamedTuple):
    """What is known about one optimizer update before it is applied; equal on every rank.

    Args:
        loss: the mean loss over micro-batches and ranks, unscaled.
        grad_norm: the 2-norm of the whole gradient before clipping, >= 0.
        rate: the rate that the run would have without the guard (the largest of all groups), >= 0. Its unit is free, it
            only has to stay the same through the run.
        side: the weights that loss and gradient were computed at.
        size: the root mean square of the run's trained weights; None where it was not measured.
        broken: whether the run's weights themselves are not finite; asked for only where loss or gradient are not.
    """

    loss: float
    grad_norm: float = 0.0
    rate: float = 1.0
    side: Side = "present"
    broken: bool = False
    size: float | None = None


class Verdict(NamedTuple):
    """What to do with the update at hand, and where the next one's batches are run.

    Args:
        kind: `accept` (apply it, its gradient times `scale`), `drop` (it is not finite), `hold` (it is a trial's and is
            not applied), `rewind` (it is not applied, and the copy `to` is given back), `give_up` (the same, and the
            run ends).
        cause: why, in words, with the evidence; empty for `accept` without a limit, and for `hold`.
        scale: multiplies the gradient of an accepted update, in (0, 1].
        limit: the largest gradient norm that the next update may have; inf for none.
        factor: multiplies the rate from this update on, in (0, 1].
        to: the copy that a rewind gives back.
        look: where the batches of the next update are run in a trial; None if no trial is under way.
        copy: whether the weights at hand, before this update, may be copied.
        outcome: of the trial that ends with this verdict; empty where none does.
        here, there: the trial's median losses at the present weights and at those of the copy; None without one.
        batches: updates that the trial has taken.
        measure: whether the next signals should have the weights' `size`.
    """

    kind: Kind
    cause: str = ""
    scale: float = 1.0
    limit: float = float("inf")
    factor: float = 1.0
    to: Side = "best"
    look: Side | None = None
    copy: bool = False
    outcome: Outcome = ""
    here: float | None = None
    there: float | None = None
    batches: int = 0
    measure: bool = False
