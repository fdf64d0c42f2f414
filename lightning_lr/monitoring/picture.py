"""A picture: a run's rates, their factors and the losses, with all that happened to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_lr.rates.change import SCHEDULER
from lightning_lr.record.curves import FACTOR, FINDER

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, which colour-blind readers can tell apart. Lines and markers differ too, wherever colours do.
Source: M. Okabe, K. Ito, Color Universal Design, 2008."""

DASHES = ("-", "--", ":", "-.")

SIGNS = {"limited": "v", "dropped": "x", "held": "|", "rewound": "D", "trial passed": "o", "trial data": "s"}
"""Markers of incidents; all others have a star."""

MOST_NAMED = 12
"""The most curves of one kind that are named."""

LONGEST = 28
"""The most characters of a name; a longer one loses its middle."""

REACH = 3.0
"""How far a loss axis reaches beyond the 80th percentile, in distances between the 10th and the 80th."""

START = 20.0
"""The first losses are on the axis, unless they are this many times as large as what is on it."""


def draw(story: Any, sentence: str = "") -> Any:
    """Draws a story.

    Args:
        story: a `Story` or a `RememberedStory`.
        sentence: the title.

    Returns:
        A `matplotlib.figure.Figure` of up to four charts that share the axis of steps.
    """
    from matplotlib.figure import Figure

    factors = [tag for tag in story.tags.factors if len(points := story.series(tag)[1]) and (points != 1.0).any()]
    happened = _happened(story)
    heights = {"rate": 3.0, "factor": 1.6 * bool(factors), "incident": 0.24 * len(happened)}
    heights["loss"] = 2.6 * bool(story.tags.losses)
    shown = [name for name, height in heights.items() if height]
    figure = Figure(figsize=(9.0, 1.3 + sum(heights.values())), layout="constrained")
    ratios = [heights[name] for name in shown]
    grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=ratios)
    charts = dict(zip(shown, grid[:, 0], strict=True))
    last = story.last_step or 0
    _rates(charts["rate"], story, last)
    if factors:
        axes = charts["factor"]
        for number, tag in enumerate(factors):
            _curve(axes, story.series(tag), last, number, tag.removeprefix(FACTOR))
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylabel("factor")
    if story.tags.losses:
        _losses(charts["loss"], story)
    if happened:
        _incidents(charts["incident"], happened)
    for record in story.valid:
        for axes in charts.values() if record.get("what") == "rewound" else ():
            axes.axvline(record["step"], color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    for axes in charts.values():
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    first, room = story.first_step or 0, 0.01 * (last + 1)
    grid[-1, 0].set_xlim(first - room, last + room)
    grid[-1, 0].set_xlabel("step")
    if sentence:
        figure.suptitle(_text(sentence), fontsize=8, wrap=True)
    return figure


def _rates(axes: Any, story: Any, last: int) -> None:
    for number, tag in enumerate(story.tags.rates):
        _curve(axes, story.series(tag), last, number, tag if number < MOST_NAMED else "")
        _zeros(axes, story.series(tag), number, tag)
    steps, values = story.series(f"{FINDER}rate")
    if len(steps):
        axes.plot(steps, values, ".", color="0.6", markersize=3, label="tried by a sweep")
    axes.set_yscale("log", nonpositive="mask")
    axes.set_ylabel("effective rate")
    by: dict[str, list[tuple[int, float]]] = {}
    for record in story.valid:
        if record["kind"] == "change":
            # files from before there were records don't say which parts are loud
            sources = record.get("loud") or [part["source"] for part in record.get("parts", ())]
            for source in sources:
                if source != SCHEDULER:
                    by.setdefault(source, []).append((record["step"], float(record["new"])))
    for number, (source, points) in enumerate(by.items()):
        where = [step for step, _ in points], [rate for _, rate in points]
        colour, sign = COLOURS[-1 - number % len(COLOURS)], "osD^P*X"[number % 7]
        label = _text(f"{_short(source)} ({len(points)})")
        axes.plot(where[0], where[1], sign, color=colour, markersize=5, fillstyle="none", label=label)


def _curve(axes: Any, points: tuple[Any, Any], last: int, number: int, name: str) -> None:
    steps, values = points
    if len(steps) and steps[-1] < last:
        # the value lasts until the end
        steps, values = np.append(steps, last), np.append(values, values[-1])
    colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
    label = _text(_short(name)) or None
    axes.plot(steps, values, dashes, color=colour, drawstyle="steps-post", linewidth=1.3, label=label)


def _zeros(axes: Any, points: tuple[Any, Any], number: int, name: str) -> None:
    """Marks at the lower edge where a value becomes 0, which a logarithmic axis can't show."""
    steps, values = points
    zero = values == 0.0
    first = steps[zero & ~np.concatenate([[False], zero[:-1]])] if len(steps) else steps
    if len(first):
        _at_edge(axes, first, 0.015, "v", COLOURS[number % len(COLOURS)], _text(f"{_short(name)} is 0 from here"))


def _at_edge(axes: Any, steps: Any, height: float, sign: str, colour: str, label: str) -> None:
    heights, transform = np.full(len(steps), height), axes.get_xaxis_transform()
    axes.plot(steps, heights, sign, color=colour, transform=transform, markersize=5, label=label)


def _losses(axes: Any, story: Any) -> None:
    ranges = [robust_range(story.series(tag)[1]) for tag in story.tags.losses]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    for number, tag in enumerate(story.tags.losses[:MOST_NAMED]):
        steps, values = story.series(tag)
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        few = "." if len(steps) < 50 else None
        beyond = ~(values <= high)
        # a line to a point outside the axis would look like a spike on either side of it
        shown = np.where(beyond, np.nan, values)
        axes.plot(steps, shown, dashes, color=colour, linewidth=1.0, marker=few, markersize=4, label=_text(_short(tag)))
        if beyond.any():
            label = _text(f"{_short(tag)} beyond, or not finite ({beyond.sum()})")
            _at_edge(axes, steps[beyond], 0.985, "^", colour, label)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    axes.set_ylim(low - room, high + 2.0 * room)
    axes.set_ylabel("loss")


def robust_range(values: Any) -> tuple[float, float]:
    """The lowest and the highest value, without those so far above most that they would flatten the rest.

    Example:
        >>> robust_range(np.array([2.3, 1.0, 0.9, 0.8, 0.7, 0.7, 0.6, 0.6, 0.5, 0.5, 1e6, np.nan]))
        (0.5, 2.3)
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return 0.0, 1.0
    first, most = np.quantile(finite, (0.1, 0.8))
    bound, start = most + REACH * (most - first), 1.5 * np.median(finite[:3])
    if start <= START * abs(bound):
        bound = max(bound, start)
    return float(finite.min()), float(finite[finite <= bound].max())


def _happened(story: Any) -> dict[str, list[int]]:
    """The steps of all incidents and findings, by what happened."""
    by: dict[str, list[int]] = {}
    for record in story.valid:
        if record["kind"] == "incident":
            by.setdefault(str(record.get("what")), []).append(record["step"])
        elif record["kind"] == "finding":
            by.setdefault(f"{record.get('callback', 'finder')} found", []).append(record["step"])
    return by


def _incidents(axes: Any, happened: dict[str, list[int]]) -> None:
    for number, (what, steps) in enumerate(happened.items()):
        sign, colour = SIGNS.get(what, "*"), COLOURS[number % len(COLOURS)]
        axes.plot(steps, [number] * len(steps), sign, color=colour, markersize=6)
    named = [_text(f"{what} ({len(steps)})") for what, steps in happened.items()]
    axes.set_yticks(range(len(happened)), named, fontsize=7)
    axes.set_ylim(len(happened) - 0.5, -0.5)


def _text(words: str) -> str:
    """Escapes a label: matplotlib reads dollar signs as mathematics, and hides labels that begin with `_`."""
    escaped = words.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def _short(words: str) -> str:
    """Shortens a name by leaving out its middle.

    >>> _short("a" * 30 + "b" * 30)
    'aaaaaaaaaaaaa...bbbbbbbbbbbb'
    """
    half = (LONGEST - 3) // 2
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 3 - half]}...{words[-half:]}"


def sentence_and_table(sentence: str, rates: dict[str, float], lines: Iterable[str]) -> str:
    """A small summary in HTML, with everything in it escaped.

    Example:
        >>> sentence_and_table("Healthy.", {"<b>": 0.1}, [])
        '<div><p>Healthy.</p><table><tr><td>&lt;b&gt;</td><td>0.1</td></tr></table></div>'
    """
    from html import escape

    rows = "".join(f"<tr><td>{escape(tag)}</td><td>{rate:.6g}</td></tr>" for tag, rate in rates.items())
    told = "".join(f"<li>{escape(line)}</li>" for line in lines)
    table, points = f"<table>{rows}</table>" if rows else "", f"<ul>{told}</ul>" if told else ""
    return f"<div><p>{escape(sentence)}</p>{table}{points}</div>"
