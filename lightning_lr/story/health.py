"""Health: how a run is doing, in one sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_lr.story.derived import plateaus
from lightning_lr.story.parsed_records import Record
from lightning_lr.story.present_rates import Rate, middle, present_rates, short
from lightning_lr.story.story import FACTOR, Story

LATELY = 200
"""Steps after which an incident is over. The journal, too, treats a later one as new (`repeats.QUIET`)."""

SHARE, SHORTEST = 0.1, 20
"""In a run shorter than 2,000 steps, this share of it is recent, and at least this many steps."""

MANY = 3
"""This many recently dropped updates are trouble; fewer are to be watched."""

MANY_LIMITED = 0.05
"""This share of recent updates limited is to be watched: the guard's limit is meant for rare ones."""

POINTS, TENTH, FALLEN = 20, 0.1, 0.02
"""The fewest points from which a loss is judged, the shares of it that are compared, and the least fall, as a share."""

LOST = ("dropped", "held", "rewound", "gave up")
GRAVE = ("gave up", "rewound", "dropped", "trial data", "held", "limited")
"""What the guard may have done, gravest first."""

SAID = {
    "gave up": ("time it gave up", "times it gave up"),
    "rewound": ("rewind", "rewinds"),
    "dropped": ("update dropped", "updates dropped"),
    "trial data": ("trial that blamed the data", "trials that blamed the data"),
    "trial passed": ("trial passed", "trials passed"),
    "held": ("update held for trials", "updates held for trials"),
    "limited": ("update limited", "updates limited"),
}
"""What is said after a number: for one and for many."""

HELD_DOWN = 1e-3
"""A plateau's factor below this has taken the rate away, whether or not it helped."""

STATES = ("none", "healthy", "watch", "trouble", "ended", "failed", "unfinished")


@dataclass(frozen=True)
class Health:
    """How a run is doing.

    Args:
        state: `none` (nothing of ours in it), `healthy`, `watch`, `trouble`, `ended` (as planned or stopped), `failed`,
            or `unfinished` (no longer written, and without an end).
        sentence: the same in words.
        since: the step since which it has been so; None if that isn't known.
        rates: effective rates by tag, absolute.
        factors: the first param group's factors, by the callback's name.
        troubles: what is wrong, in words; empty if nothing is.
    """

    state: str
    sentence: str
    since: int | None
    rates: dict[str, float]
    factors: dict[str, float]
    troubles: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**self.__dict__, "troubles": list(self.troubles)}


def health_of(story: Story) -> Health:
    """How the run is doing at its last step."""
    rates = present_rates(story)
    by_tag = {rate.tag: rate.value for rate in rates}
    factors = {share.source: share.factor for share in rates[0].shares} if rates else {}
    last = story.last_step
    if not story.has_data or last is None:
        return Health("none", "Nothing of lightning_lr in this run.", None, by_tag, factors)
    incidents = [record for record in story.valid if record["kind"] == "incident"]
    state, troubles, since = _state(story, incidents, last)
    head = {"healthy": "Healthy", "watch": "Watch", "trouble": "Trouble"}[state]
    state, head = _ended(story, state, head, last)
    words = [f"{head}: {'; '.join(troubles)}" if troubles else head]
    if rates:
        words.append(_rates(rates))
    # "no incidents" would be a strange end for a run that went wrong without a guard
    guard = _guard(incidents, last, ended=not story.writing) if incidents or not troubles else ""
    sentence = (": " if not troubles else ". ").join(part for part in words if part)
    return Health(state, f"{sentence}; {guard}." if guard else f"{sentence}.", since, by_tag, factors, tuple(troubles))


def _state(story: Story, incidents: list[Record], last: int) -> tuple[str, list[str], int | None]:
    lately = min(LATELY, max(SHORTEST, int(SHARE * last)))
    late = [record for record in incidents if record["step"] > last - lately]
    counts = _counts(late)
    troubles, trouble = [], False
    for tag in story.tags.losses[:1]:
        words, bad = _loss(story, tag)
        troubles += [words] if words else []
        trouble |= bad
    if counts["gave up"]:
        troubles.append("the guard gave up")
        trouble = True
    if counts["rewound"]:
        troubles.append(f"{_times('rewound', counts['rewound'])} in the last {lately} steps")
        trouble = True
    if counts["dropped"]:
        troubles.append(f"{_updates(counts['dropped'])} dropped in the last {lately} steps")
        trouble |= counts["dropped"] >= MANY
    if counts["limited"] >= MANY_LIMITED * min(lately, last + 1) and counts["limited"] >= MANY:
        troubles.append(f"{_updates(counts['limited'])} limited in the last {lately} steps")
    troubles += _rates_lost(story, last, lately)
    grave = [record["step"] for record in late if record["what"] in LOST]
    quiet = [record["step"] for record in incidents if record["what"] in LOST]
    since = min(grave) if grave else (max(quiet) + 1 if quiet else story.first_step)
    return ("trouble" if trouble else "watch" if troubles else "healthy"), troubles, since


def _rates_lost(story: Story, last: int, lately: int) -> list[str]:
    """Rates that are 0, or nearly 0, long before the end."""
    found = []
    begun = [_zero_since(*story.series(tag)) for tag in story.tags.rates]
    since = [step for step in begun if step is not None]
    if since and len(since) == len(begun) and max(since) <= last - min(lately, SHORTEST):
        found.append(f"every rate is 0 since step {max(since):,}")
    for name in plateaus(story.valid):
        _, values = story.series(f"{FACTOR}{name}")
        if len(values) and values[-1] < HELD_DOWN:
            found.append(f"{middle(name)} has taken the rate down to {values[-1]:.1g} times what it was")
    return found


def _zero_since(steps: NDArray[np.int64], values: NDArray[np.float64]) -> int | None:
    used = np.flatnonzero(values)
    if not len(values) or (len(used) and used[-1] == len(values) - 1):
        return None
    return int(steps[used[-1] + 1 if len(used) else 0])


def _loss(story: Story, tag: str) -> tuple[str, bool]:
    """What is wrong with a loss, and whether that is trouble."""
    steps, values = story.series(tag)
    finite = np.isfinite(values)
    if len(values) and not finite[-1]:
        good = np.flatnonzero(finite)
        first = int(steps[good[-1] + 1]) if len(good) else int(steps[0])
        return f"{middle(tag)} is {values[-1]:g} since step {first:,}", True
    values = values[finite]
    if len(values) < POINTS:
        return "", False
    few = max(3, int(TENTH * len(values)))
    begin, end = float(np.median(values[:few])), float(np.median(values[-few:]))
    if begin - end < FALLEN * abs(begin):
        return f"{middle(tag)} has not fallen: {begin:.3g} at first, {end:.3g} of late", False
    return "", False


def _ended(story: Story, state: str, head: str, last: int) -> tuple[str, str]:
    end = story.end
    if end is None:
        if story.writing:
            return state, head
        if not story.structured:
            fine = state == "healthy"
            return ("ended" if fine else state), f"{'Fine' if fine else head} until its last step, {last:,}"
        return "unfinished", f"No longer written since step {last:,}, and without an end. {head} until then"
    status, at = str(end.get("status", "finished")), int(end["step"])
    if status == "failed":
        error = f": {short(str(end['error'])).rstrip('.')}" if end.get("error") else ""
        return "failed", f"Failed at step {at:,}{error}. {head} until then"
    words = {"finished": "Finished", "stopped": "Stopped", "interrupted": "Interrupted"}.get(status, status)
    if state == "trouble":
        return "failed", f"{words} at step {at:,} in trouble"
    if state == "watch":
        return "watch", f"{words} at step {at:,}, to be looked at"
    return "ended", f"{words} at step {at:,}, healthy"


def _rates(rates: list[Rate]) -> str:
    first, *others = rates
    if not others:
        return first.words
    if len(others) > 2:
        values = [rate.value for rate in others]
        return f"{first.words}; {len(others)} more groups at {min(values):.3g} to {max(values):.3g}"
    return "; ".join([first.words, *(f"{middle(rate.tag)} at {rate.value:.3g}" for rate in others)])


def _guard(incidents: list[Record], last: int, *, ended: bool) -> str:
    if not incidents:
        return "no incidents"
    counts = _counts(incidents)
    grave = {what: i for i, what in enumerate(GRAVE)}
    told = [
        f"{counts[what]:,} {said(what, counts[what])}"
        for what in sorted(counts, key=lambda what: grave.get(what, len(grave)))
    ]
    ago = last - incidents[-1]["step"]
    steps = f"{ago:,} step{'' if ago == 1 else 's'}"
    where = f"{steps} before the end" if ended else f"{steps} ago"
    the_last = "the last one " if sum(counts.values()) > 1 else ""
    return f"{', '.join(told)}, {the_last}{where if ago else 'at the last step'}"


def said(what: str, number: int) -> str:
    """The words that follow the number of incidents of a kind.

    Example:
        >>> said("rewound", 2), said("trial data", 1)
        ('rewinds', 'trial that blamed the data')
    """
    return SAID.get(what, (what, what))[number > 1]


def _counts(incidents: list[Record]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for record in incidents:
        counts[middle(str(record.get("what", "?")))] += int(record.get("count") or 1)
    return counts


def _times(what: str, number: int) -> str:
    return what if number == 1 else f"{what} {number} times"


def _updates(number: int) -> str:
    return f"{number} update{'' if number == 1 else 's'}"
