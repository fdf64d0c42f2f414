"""Tables: what a report says about a run, as rows of plain text that are not drawn yet."""

from __future__ import annotations

import bisect
import math
from collections.abc import Container
from dataclasses import dataclass, replace

from lightning_lr.story import Story
from lightning_lr.story.health import GRAVE
from lightning_lr.story.parsed_records import Record, decades, loudest, number
from lightning_lr.story.present_rates import middle, short

MOST = 20
"""The changes that are shown, unless all are asked for."""

Drifts = dict[tuple[str, str], list[tuple[int, int]]]
"""The first and last steps of drifts, by the rate's tag and the source."""

LONG = 160
"""The most characters of a reason."""

SCHEDULED = 0.3
"""The weight of a change by the schedule, relative to a callback's: it was planned."""


OWN = "the optimizer's own rate"

FIRST = 0.2
"""The weight of a param group's first rate, if another that began at the same step is shown."""


@dataclass(frozen=True)
class ChangeRow:
    """One change, or one drift.

    Args:
        start: the step, or the first step of a drift.
        steps: the step, or the first and the last step, in words.
        group: the param group's tag, "all", or the first of several and how many more; the rates are the first one's.
        old: the rate before, in words.
        new: the rate since then, in words.
        cause: the cause, in words.
        weight: how much the change matters, >= 0.
    """

    start: int
    steps: str
    group: str
    old: str
    new: str
    cause: str
    weight: float


def changes(story: Story, most: int | None = MOST) -> tuple[list[ChangeRow], int]:
    """The changes of the rates, sorted by step.

    Args:
        story: the run's story.
        most: the most changes; those that matter most are chosen; None for all.

    Returns:
        The rows, and how many more there are.
    """
    # the first changes of a drift are in its own row
    drifts: Drifts = {}
    for record in story.valid:
        if record["kind"] == "drift":
            span = record["start"], record.get("end", record["step"])
            drifts.setdefault((record["tag"], record["source"]), []).append(span)
    by_hand = {group["tag"] for group in story.groups if group.get("scheduled") is False}
    rows = [row for record in story.valid if (row := _row(record, drifts, by_hand)) is not None]
    rows = _together(sorted(rows, key=lambda row: row.start), len(story.groups))
    if most is None or len(rows) <= most:
        return rows, 0
    best = sorted(range(len(rows)), key=lambda i: (-rows[i].weight, i))[:most]
    return [rows[i] for i in sorted(best)], len(rows) - most


@dataclass(frozen=True)
class Kind:
    """Incidents of one kind.

    Args:
        callback: the callback's name.
        what: what it did.
        count: how often.
        first, last: the first and the last step.
        cause: the last cause that is known, in words.
    """

    callback: str
    what: str
    count: int
    first: int
    last: int
    cause: str


def incidents(story: Story) -> list[Kind]:
    """The incidents by kind, gravest first."""
    kinds: dict[tuple[str, str], list[Record]] = {}
    for record in story.valid:
        if record["kind"] == "incident":
            kinds.setdefault((str(record.get("callback", "")), str(record.get("what", ""))), []).append(record)
    found = []
    for (callback, what), own in kinds.items():
        count = sum(int(record.get("count") or 1) for record in own)
        cause = next((str(record["cause"]) for record in reversed(own) if record.get("cause")), "")
        found.append(Kind(callback, what, count, own[0]["step"], own[-1]["step"], cause))
    return sorted(found, key=lambda kind: GRAVE.index(kind.what) if kind.what in GRAVE else len(GRAVE))


def plain(text: str, longest: int = 60) -> str:
    """A printable name: without control characters, and without its middle if it is long.

    Example:
        >>> plain("a" * 100, 11), plain("red \\x1b[31m")
        ('aaaaa…aaaaa', 'red \\\\x1b[31m')
    """
    return middle("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text), longest)


def _together(rows: list[ChangeRow], groups: int) -> list[ChangeRow]:
    """Joins changes of several param groups at the same step and with the same cause into one row."""
    alike: dict[tuple[str, str, str], list[ChangeRow]] = {}
    for row in rows:
        # a first update has no change to compare, only a rate
        alike.setdefault((row.steps, row.cause, "" if row.old else row.new), []).append(row)
    found, begun = [], set()
    for own in alike.values():
        names = {row.group for row in own}
        if not own[0].old and own[0].new:
            # of many first rates only one may take the place of a change
            own[0] = replace(own[0], weight=FIRST) if own[0].steps in begun else own[0]
            begun.add(own[0].steps)
        more = "all" if len(names) == groups else f"{own[0].group} +{len(names) - 1}"
        found.append(replace(own[0], group=more) if len(names) > 1 else own[0])
        # several rows of one param group are rare, and stay apart
        found += own[1:] if len(names) == 1 else []
    return found


def _row(record: Record, drifts: Drifts, by_hand: Container[str]) -> ChangeRow | None:
    kind, step = record["kind"], record["step"]
    if kind == "first":
        shares = [f"x {number(part['new']):.4g} {part['source']}" for part in _parts(record)]
        reasons = [short(str(part["reason"]), LONG) for part in _parts(record) if part.get("reason")]
        cause = f"first update{''.join(f' {share}' for share in shares)}{': ' if reasons else ''}{'; '.join(reasons)}"
        return ChangeRow(step, f"{step:,}", record["tag"], "", f"{number(record['new']):.4g}", cause, math.inf)
    if kind == "drift":
        first, last = number(record["first"]), number(record["last"])
        planned, source = record["source"] == "scheduler", _named(record["source"], record["tag"], by_hand)
        sign = "" if planned else "x "
        of = "" if source == OWN else " of its rate" if planned else " of its factor"
        cause = f"{source}, {record['changes']:,} changes{of}"
        steps = f"{record['start']:,} to {record.get('end', step):,}"
        weight = 2 * decades(first, last) * (SCHEDULED if planned else 1)
        return ChangeRow(
            record["start"], steps, record["tag"], f"{sign}{first:.4g}", f"{sign}{last:.4g}", cause, weight
        )
    if record.get("what") == "lost":
        return ChangeRow(step, f"{step:,}", "", "", "", record["words"], math.inf)
    if kind != "change":
        return None
    old, new = number(record["old"]), number(record["new"])
    causes = {str(part["source"]) for part in _parts(record)}
    if causes and all(_within(step, drifts.get((record["tag"], source), [])) for source in causes):
        return None
    own = [decades(p["old"], p["new"]) for p in _parts(record) if p["source"] != "scheduler"]
    weight = max([*own, SCHEDULED * decades(old, new)]) + (0.1 if own else 0.0)
    return ChangeRow(step, f"{step:,}", record["tag"], f"{old:.4g}", f"{new:.4g}", _cause(record, by_hand), weight)


def _cause(record: Record, by_hand: Container[str]) -> str:
    loud = loudest(record)
    if not loud:
        return str(record.get("cause", ""))
    words = []
    for part in loud:
        sign, source = "" if part["source"] == "scheduler" else "x ", _named(part["source"], record["tag"], by_hand)
        share = f"{source} {sign}{number(part['old']):.4g} -> {sign}{number(part['new']):.4g}"
        words.append(f"{share}: {short(str(part['reason']), LONG)}" if part.get("reason") else share)
    if record.get("running"):
        words.append("and goes on like this")
    return "; ".join(words)


def _named(source: str, tag: str, by_hand: Container[str]) -> str:
    """Who changes a param group's rate: without a scheduler, what is called so is the user's own hand."""
    return OWN if source == "scheduler" and tag in by_hand else source


def _within(step: int, spans: list[tuple[int, int]]) -> bool:
    """Whether the step is in one of the spans, which are sorted and don't overlap."""
    at = bisect.bisect(spans, step, key=lambda span: span[0]) - 1
    return at >= 0 and step <= spans[at][1]


def _parts(record: Record) -> list[Record]:
    return [part for part in record.get("parts", ()) if isinstance(part, dict) and "source" in part]
