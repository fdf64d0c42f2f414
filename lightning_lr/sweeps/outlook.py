"""The outlook for a run's sweeps: which of them fit into what is left of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lightning_lr.policies.sweep import LEAST_STEPS
from lightning_lr.policies.sweep_schedule import SweepSchedule, SweepScheduleState, epoch_place, listed, update_place
from lightning_lr.run.length import accumulation, updates_in_run, updates_per_epoch
from lightning_lr.sweeps.pauses import BETWEEN_PAUSES

LEAST_REST = 0.1
"""After a sweep at least this share of its own length must be left of the run: otherwise its rate is of no use."""

AUTO_REST = 1.0
"""The same for a sweep whose length nobody chose: it takes no more than half of what is left. In a run of 80 updates
the regret of a sweep of 60 was 0.48 and that of one of 20 was 0.19; in a run of 120 it was 0.23 and 0.16, in one of 160
the two were equal, and in one of 300 it was 0.14 and 0.15 (on the tuning half of the tasks, two seeds)."""


def longest(steps: int, epoch: float, *, rest: bool = False) -> int:
    """The most updates that a sweep takes: those of the policy, and a pause at the start of each epoch.

    Args:
        steps: the policy's most updates.
        epoch: the updates of an epoch, or inf.
        rest: whether the last update of an epoch has fewer batches than the others, and so is a pause too.

    Example:
        >>> longest(60, math.inf), longest(60, 10), longest(60, 1), longest(60, 10, rest=True)
        (61, 68, 80, 78)
    """
    pauses = steps / BETWEEN_PAUSES
    # after a pause at an epoch's end some updates go by before the next one may be a pause
    lost = 2.0 if rest and epoch > BETWEEN_PAUSES + 1 else 1.0
    if epoch > 1.0:
        regular = lost * (steps / epoch + 1.0) / (1.0 - lost / epoch)
        pauses = regular if rest else min(pauses, regular)
    return steps + math.ceil(pauses)


def needed(trainer: Any, steps: int, *, replay: bool) -> int:
    """The most updates that a sweep takes in this run; see `longest`."""
    batches, parts = trainer.num_training_batches, accumulation(trainer, trainer.current_epoch)
    rest = replay and math.isfinite(batches) and batches > parts and batches % parts > 0
    return longest(steps, updates_per_epoch(trainer), rest=rest)


def fits(needs: int, left: float, least_rest: float = LEAST_REST) -> bool:
    """Whether a sweep is worth making in what is left of the run.

    Args:
        needs: the most updates that it takes.
        left: the updates that are left of the run.
        least_rest: the share of the sweep's length that must be left after it.
    """
    return left >= (1.0 + least_rest) * needs


def shortened(trainer: Any, steps: int, run: float | None, *, replay: bool) -> int:
    """The most updates of a sweep whose length nobody chose, in a run of `run` updates."""
    if run is None or fits(needed(trainer, steps, replay=replay), run, AUTO_REST):
        return steps
    return LEAST_STEPS


class Place(NamedTuple):
    """A place of a schedule that is still to come.

    Args:
        name: as in `SweepScheduleState.done`.
        words: as the user wrote it, or `AT_START`.
        left: the updates that are left of the run there; 0 or less if the run ends before.
        fits: whether a sweep fits there.
    """

    name: str
    words: str
    left: float
    fits: bool


def places_ahead(
    schedule: SweepSchedule,
    state: SweepScheduleState,
    *,
    made: int,
    epoch: int,
    per_epoch: float,
    run: float,
    needs: int,
    least_rest: float = LEAST_REST,
) -> list[Place]:
    """The places that are still to come, in their order.

    Args:
        schedule: all places.
        state: which of them are over.
        made: the updates made so far.
        epoch: the present epoch.
        per_epoch: the updates of an epoch.
        run: the updates that are left of the run.
        needs: the most updates of a sweep, by which the places after it are put off.
        least_rest: see `fits`.

    Example:
        >>> schedule = SweepSchedule((0, 20), (5,))
        >>> ahead = places_ahead(schedule, SweepScheduleState(), made=0, epoch=0, per_epoch=10, run=100, needs=34)
        >>> [(place.words, place.left, place.fits) for place in ahead]
        [('at=0', 100, True), ('epochs=5', 50, True), ('at=20', 12, False)]
    """
    ahead: list[Place] = []
    taken = 0
    names = schedule.words
    waiting = [(max(0, at - made), update_place(at), names[update_place(at)]) for at in schedule.updates]
    fixed = [(max(0, at - epoch) * per_epoch, epoch_place(at), names[epoch_place(at)]) for at in schedule.epochs]
    waiting, fixed = ([p for p in sorted(places) if p[1] not in state.done] for places in (waiting, fixed))
    while waiting or fixed:
        if not fixed or (waiting and waiting[0][0] + taken <= fixed[0][0]):
            begins, name, words = waiting.pop(0)
            begins += taken
        else:
            begins, name, words = fixed.pop(0)
        place = Place(name, words, run - begins, fits(needs, run - begins, least_rest))
        taken += needs if place.fits else 0
        ahead.append(place)
    return ahead


class Outlook(NamedTuple):
    """What is known of a run's sweeps at its start.

    Args:
        without_room: the names of the places where there is no room for a sweep.
        refusals: why there is no room, in words, for each kind of place without any.
    """

    without_room: frozenset[str]
    refusals: list[str]


def outlook(
    trainer: Any,
    schedule: SweepSchedule,
    state: SweepScheduleState,
    *,
    made: int,
    steps: int,
    replay: bool,
    shorter: str,
    least_rest: float = LEAST_REST,
) -> Outlook:
    """Looks ahead over the run, if its length is known.

    Args:
        trainer: at the start of training.
        schedule: all places.
        state: which of them are over.
        made: the updates made so far.
        steps: the policy's most updates.
        replay: whether it plays batches again.
        shorter: how the user writes a finder with `LEAST_STEPS` steps.
        least_rest: see `fits`.
    """
    run = updates_in_run(trainer, None)
    if run is None:
        return Outlook(frozenset(), [])
    epoch, per_epoch = trainer.current_epoch, updates_per_epoch(trainer)
    needs = needed(trainer, steps, replay=replay)
    length: dict[str, Any] = {"made": made, "epoch": epoch, "per_epoch": per_epoch, "run": run}
    ahead = places_ahead(schedule, state, **length, needs=needs, least_rest=least_rest)
    refusals = []
    short = [place for place in ahead if not place.fits and place.left > 0]
    if short:
        left = short[0].left
        refusals.append(f"no sweep {listed(place.words for place in short)}: {no_room(needs, left, least_rest)}")
        if (steps > LEAST_STEPS or least_rest > LEAST_REST) and fits(needed(trainer, LEAST_STEPS, replay=replay), left):
            refusals[0] += f", or write {shorter}"
    late = [place for place in ahead if place.left <= 0]
    if late:
        refusals.append(
            f"no sweep {listed(place.words for place in late)}: the run ends first, after {made + run:.0f} updates"
        )
    return Outlook(frozenset(place.name for place in short + late), refusals)


def no_room(needs: int, left: float, least_rest: float = LEAST_REST) -> str:
    """Why a sweep is not worth making."""
    if least_rest == AUTO_REST:
        return (
            f"it may take {needs} updates, and the run has {left:.0f} left, of which a sweep with steps='auto' takes "
            f"half at most: train longer"
        )
    return f"it may take {needs} updates, and the run has {left:.0f} left: train longer"
