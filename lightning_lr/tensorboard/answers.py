"""Answers to what the page asks about one run, as plain values that JSON can hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_lr.statistics.thin import thin
from lightning_lr.tensorboard.marks import key, marks, start
from lightning_lr.tensorboard.parameters import NotFoundError, Parameters

TAGS = 64
"""The most series in one answer."""

POINTS = 5000
"""The most points of one series in one answer: more than a screen has columns."""


def series(story: Any, parameters: Parameters) -> dict[str, Any]:
    """Points of scalars by tag, thinned so that no jump or spike is lost."""
    tags = parameters.words("tag", TAGS)
    first, last = parameters.span()
    points = parameters.whole("points", 1000, 10, POINTS)
    found, thinned = {}, False
    for tag in tags:
        steps, values = story.series(tag)
        if not len(steps):
            raise NotFoundError(f"tag must be one of the run's, got {tag!r}: see runs")
        kept_steps, kept, fewer = thin(steps, values, points, first, last)
        thinned |= fewer
        found[tag] = {"steps": kept_steps.tolist(), "values": [json_number(value) for value in kept.tolist()]}
    return {"series": found, "thinned": thinned}


def records(story: Any, parameters: Parameters) -> dict[str, Any]:
    """Marks of the range, and the latest `limit` of the records behind them."""
    first, last = parameters.span()
    limit = parameters.whole("limit", 100, 0, 2000)
    bins = parameters.whole("bins", 200, 10, 1000)
    wanted = {name: set(parameters.words(name, TAGS)) for name in ("kind", "cause", "what", "tag")}
    found = [
        record
        for record in story.valid
        if (last is None or start(record) <= last) and (first is None or record["step"] >= first)
    ]
    for name, values in wanted.items():
        if values:
            found = [record for record in found if getattr(key(record), name) in values]
    shown = found[len(found) - limit :] if limit else []
    return {"marks": marks(found, bins), "records": shown, "left_out": len(found) - len(shown)}


def finding(story: Any, parameters: Parameters) -> dict[str, Any]:
    """The findings of all sweeps, oldest first."""
    return {"findings": story.findings}


def heat(story: Any, parameters: Parameters) -> dict[str, Any]:
    """log10 of the update's size relative to the weights, for each module and column of steps; null: no point."""
    first, last = parameters.span()
    columns = parameters.whole("columns", 300, 10, 1000)
    rows, low, high = [], math.inf, -math.inf
    for tag in story.tags.updates:
        steps, values = story.series(tag)
        inside = slice(
            0 if first is None else int(np.searchsorted(steps, first)),
            len(steps) if last is None else int(np.searchsorted(steps, last, "right")),
        )
        if len(steps[inside]):
            rows.append((tag, steps[inside], values[inside]))
            low, high = min(low, steps[inside][0]), max(high, steps[inside][-1])
    if not rows:
        return {"modules": [], "steps": [], "values": []}
    edges = np.unique(np.linspace(low, high + 1, columns + 1).astype(np.int64))
    # with fewer logged steps than columns, each step has a column of its own
    every = np.unique(np.concatenate([steps for _, steps, _ in rows]))
    if 2 * len(every) < len(edges) - 1:
        # which is no wider than usual where the next one is far
        usual = max(1, int(np.median(np.diff(every)))) if len(every) > 1 else 1
        ends = every + usual
        far = np.append(ends[:-1] < every[1:], True)
        edges = np.union1d(every, ends[far])
    table = []
    for _, steps, values in rows:
        place = np.searchsorted(edges, steps, "right") - 1
        good = np.isfinite(values) & (values > 0)
        count = len(edges) - 1
        sums = np.bincount(place[good], np.log10(values[good]), count)[:count]
        counts = np.bincount(place[good], minlength=count)[:count]
        table.append([json_number(s / n) if n else None for s, n in zip(sums, counts, strict=True)])
    return {"modules": [tag for tag, _, _ in rows], "steps": edges.tolist(), "values": table}


def json_number(value: float) -> float | str | None:
    """A number as JSON can hold it.

    Example:
        >>> [json_number(value) for value in (0.5, float("nan"), float("inf"), float("-inf"))]
        [0.5, None, 'inf', '-inf']
    """
    if math.isfinite(value):
        return float(value)
    return None if math.isnan(value) else "inf" if value > 0 else "-inf"
