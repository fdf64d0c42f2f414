"""Present rates: what each rate is made of now, the scheduler's rate times each callback's factor."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lightning_lr.story.parsed_records import SCHEDULER, Record, number
from lightning_lr.story.story import FACTOR, Series, Story

MOVING, AMONG = 3, 64
"""A factor that has changed at least this often in the last steps, this many, is still moving."""

WHOLE = 3
"""Param groups whose shares are worked out; of further ones only the rate is."""

LONGEST_NAME, LONGEST_REASON = 60, 90
"""The most characters of a name and of a reason."""


Reasons = dict[tuple[str, str], list[Record]]
"""The parts of all changes, by the rate's tag and the source."""


@dataclass(frozen=True)
class RateFactor:
    """One callback's share in a rate.

    Args:
        source: the callback's name.
        factor: its factor, a ratio.
        since: the step at which the factor took this value; None if that isn't known.
        reason: why, in words; may be empty.
        moving: whether the factor is still changing.
    """

    source: str
    factor: float
    since: int | None
    reason: str
    moving: bool

    @property
    def words(self) -> str:
        """For example `0.5 (DivergenceGuard, since step 4,120: rewound after a loss that is not finite)`."""
        if self.moving:
            return f"{self.factor:.3g} ({middle(self.source)}, still changing)"
        since = "" if self.since is None or not self.reason else f", since step {self.since:,}: {short(self.reason)}"
        return f"{self.factor:.3g} ({middle(self.source)}{since})"


@dataclass(frozen=True)
class Rate:
    """One param group's rate.

    Args:
        tag: its scalar's tag.
        value: the effective rate, absolute.
        base: the scheduler's; None where a factor of 0 hides it.
        scheduled: whether a scheduler makes the base; where nothing says so, whether it has ever changed.
        shares: of the callbacks whose factor isn't 1.
    """

    tag: str
    value: float
    base: float | None
    scheduled: bool
    shares: tuple[RateFactor, ...]

    @property
    def words(self) -> str:
        """Such as `lr-AdamW at 0.0012 = 0.003 (scheduler) x 0.4 (LRFinder)`."""
        whose = "scheduler" if self.scheduled else "the optimizer's own"
        if not self.shares:
            return f"{middle(self.tag)} at {self.value:.3g} ({whose})"
        base = [] if self.base is None else [f"{self.base:.3g} ({whose})"]
        return (
            f"{middle(self.tag)} at {self.value:.3g} = {' x '.join([*base, *(share.words for share in self.shares)])}"
        )


def present_rates(story: Story) -> list[Rate]:
    """The rates of all param groups, in order."""
    reasons: Reasons = {}
    for record in story.valid:
        for part in _parts(record):
            reasons.setdefault((record["tag"], part["source"]), []).append(part)
    tags = story.tags.rates
    return [rate for i, tag in enumerate(tags) if (rate := _rate(story, tag, reasons, whole=i < WHOLE)) is not None]


def middle(text: str, longest: int = LONGEST_NAME) -> str:
    """Shortens a name by cutting its middle, since its end says as much as its beginning.

    Example:
        >>> middle("a" * 100, 11)
        'aaaaa…aaaaa'
    """
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def short(words: str, longest: int = LONGEST_REASON) -> str:
    """Shortens a reason: first by leaving out what is in brackets, then by cutting between two words."""
    if len(words) > longest:
        words = re.sub(r" \([^()]*\)", "", words)
    if len(words) <= longest:
        return words
    return words[:longest].rsplit(" ", 1)[0].rstrip(",;:(") + " ..."


def _rate(story: Story, tag: str, reasons: Reasons, *, whole: bool) -> Rate | None:
    _, values = story.series(tag)
    if not len(values):
        return None
    shares = [_share(story, source, tag, reasons) for source in (story.factors if whole else ())]
    told = tuple(share for share in shares if share is not None and abs(share.factor - 1.0) > 1e-6)
    product = math.prod(share.factor for share in told)
    base = float(values[-1]) / product if product else None
    known = next((group.get("scheduled") for group in story.groups if group["tag"] == tag), None)
    scheduled = (tag, SCHEDULER) in reasons if known is None else bool(known)
    if whole and known is None and not scheduled and base is not None:
        # without a monitor there are no lines about the schedule's own changes
        begun = math.prod(float(own[0]) for source in story.factors if len(own := _factor(story, source, tag)[1]))
        scheduled = begun > 0 and not math.isclose(float(values[0]) / begun, base, rel_tol=1e-3)
    return Rate(tag, float(values[-1]), base, scheduled, told)


def _share(story: Story, source: str, tag: str, reasons: Reasons) -> RateFactor | None:
    steps, values = _factor(story, source, tag)
    if not len(steps):
        return None
    last = float(values[-1])
    changed = (values[1:] != values[:-1]).nonzero()[0] + 1
    lately = steps[changed] > steps[-1] - AMONG
    moving = story.writing and int(lately.sum()) >= MOVING
    since = int(steps[changed[-1]]) if len(changed) else int(steps[0])
    reason = ""
    for part in reasons.get((tag, source), ()):
        # event files hold scalars as float32
        if abs(number(part.get("new")) - last) <= 1e-6 * abs(last):
            reason = str(part.get("reason") or "")
    return RateFactor(source, last, since, reason, moving)


def _factor(story: Story, source: str, tag: str) -> Series:
    own = f"{FACTOR}{source}/{tag}"
    return story.series(own if own in story.tags.factors else f"{FACTOR}{source}")


def _parts(record: Record) -> list[Record]:
    if record["kind"] == "drift":
        return [{"source": record["source"], "old": record["first"], "new": record["last"], "reason": ""}]
    return record.get("parts", []) if record["kind"] in ("change", "first") else []
