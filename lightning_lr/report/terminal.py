"""The terminal: a report for somebody who has half a minute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.console import Console, Group
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lightning_lr.report.sparkline import sparkline
from lightning_lr.report.tables import MOST, Kind, changes, incidents, plain
from lightning_lr.story import Health, Story, health_of
from lightning_lr.story.health import STATES, said

COLOURS = {
    "healthy": "green",
    "watch": "yellow",
    "trouble": "red",
    "ended": "green",
    "failed": "red",
    "unfinished": "yellow",
    "none": "dim",
}
"""Colours by state; the words say it too."""

BAD = ("trouble", "failed", "watch", "unfinished")
"""States that need a look, the worst first."""

SHOWN, DETAILED = 20, 3
"""The most runs in the overview, and the most runs that each have tables of their own."""

LOSSES = 2

WIDE = 100
"""Columns of a terminal that has room for more."""


def show(stories: Sequence[Story], *, whole: bool = False, every: bool = False, console: Console | None = None) -> None:
    """Prints the report.

    Args:
        stories: the stories of the runs, already read.
        whole: whether each run has its tables, however many runs there are.
        every: whether all changes and runs are shown.
        console: a console of rich; None for the standard output.
    """
    console = console or Console(markup=False, highlight=False, emoji=False)
    ours = [story for story in stories if story.has_data]
    others = [story for story in stories if not story.has_data]
    healths = {story: health_of(story) for story in stories}
    if len(ours) > 1:
        # first those that need a look, then the latest
        first = sorted(ours, key=lambda story: (_rank(healths[story]), -(story.time or 0.0)))
        shown = ours if every or len(ours) <= SHOWN else first[:SHOWN]
        console.print(_overview(shown, healths, console))
        if len(ours) > len(shown):
            left = Counter(healths[story].state for story in first[SHOWN:])
            states = ", ".join(f"{number:,} {state}" for state, number in left.most_common())
            console.print(Text(f"and {len(ours) - len(shown):,} more runs ({states}): --all shows them", "dim"))
    in_detail = ours if whole or len(ours) <= DETAILED else []
    for story in ours if not in_detail else ():
        for words in story.broken:
            console.print(Text(f"{plain(story.name)}: {plain(words, 400)}", "yellow"))
    for i, story in enumerate(in_detail):
        if i or len(ours) > 1:
            console.print()
        _run(story, healths[story], console, None if every else MOST, titled=len(stories) > 1)
    if ours and not in_detail:
        console.print(Text("--run NAME shows the changes of one, --all those of all", "dim"))
    for story in others:
        for remark in story.remarks:
            console.print(Text(f"{plain(story.name)}: {plain(remark, 400)}", "yellow"))
    if others:
        names = ", ".join(plain(story.name) for story in others[:5])
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        console.print(Text(f"\nNothing of lightning_lr in: {names}{more}", "dim"))
        if not ours:
            console.print(
                Text("Rates and their causes are there once a run had one of its callbacks: LRMonitor() is enough.")
            )


def _rank(state: Health) -> int:
    return BAD.index(state.state) if state.state in BAD else len(BAD)


def _overview(stories: Sequence[Story], healths: dict[Story, Health], console: Console) -> Table:
    wide = console.width >= WIDE
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("run", "state", "step", "rate", "loss", "incidents", *(["loss so far"] if wide else [])):
        right = name in ("step", "rate", "loss")
        least = max(map(len, STATES)) + 1 if name == "state" else None
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "incidents", min_width=least)
    for story in stories:
        state = healths[story]
        loss = next(iter(story.tags.losses), None)
        _, losses = story.series(loss) if loss else (None, np.zeros(0))
        kinds = [f"{kind.count:,} {plain(said(kind.what, kind.count), 30)}" for kind in incidents(story)]
        rates = list(state.rates.values())
        more = f" +{len(rates) - 1}" if len(rates) > 1 else ""
        table.add_row(
            Text(plain(story.name, 40 if wide else 24)),
            Text(state.state + ("*" if story.writing else ""), COLOURS.get(state.state, "")),
            f"{story.last_step or 0:,}",
            f"{rates[0]:.3g}{more}" if rates else "",
            f"{losses[-1]:.4g}" if len(losses) else "",
            Text(", ".join(kinds[:2] + [f"and {len(kinds) - 2} more"] * (len(kinds) > 2)) or "none"),
            *([Text(_line(story, loss, 16, console) if loss else "")] if wide else []),
        )
    if any(story.writing for story in stories):
        table.caption, table.caption_justify = "* is still being written", "left"
    return table


def _run(story: Story, state: Health, console: Console, most: int | None, *, titled: bool) -> None:
    if titled:
        console.print(Rule(Text(plain(story.name), "bold"), align="left", characters="-" if _ascii(console) else "─"))
    head, colon, rest = state.sentence.partition(": ")
    console.print(Text.assemble((head + colon, f"bold {COLOURS.get(state.state, '')}"), plain(rest, 2000)))
    if story.writing:
        console.print(Text("It is still being written: what comes later isn't here yet.", "cyan"))
    for remark in story.remarks:
        console.print(Text(f"Note: {plain(remark, 400)}.", "yellow"))
    lines = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    tags = [*story.tags.rates[:3], *story.tags.losses[:LOSSES]]
    # what the name and the words after the line leave
    width = max(10, min(60, console.width - max((len(plain(tag, 24)) for tag in tags), default=0) - 44))
    for tag in tags:
        rate = tag in story.tags.rates
        _, values = story.series(tag)
        known = values[np.isfinite(values)]
        ends = f"{known.min():.3g} to {known.max():.3g}, now {values[-1]:.3g}" if len(known) else "never finite"
        lines.add_row(Text(plain(tag, 24)), Text(_line(story, tag, width, console), "cyan" if rate else ""), Text(ends))
    rows, left = changes(story, most)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    several = len(story.tags.rates) > 1
    names = ["step", *(["group"] if several else []), "old", "", "new", "cause"]
    for name in names:
        table.add_column(
            name, justify="right" if name in ("step", "old") else "left", no_wrap=name not in ("cause", "")
        )
    for row in rows:
        arrow = "" if not row.old else "->" if _ascii(console) else "→"
        group = [Text(plain(row.group, 24))] if several else []
        table.add_row(row.steps, *group, row.old, arrow, row.new, Text(plain(row.cause, 400)))
    parts: list[object] = [lines, "", table] if rows else [lines]
    if left:
        parts.append(Text(f"and {left:,} more changes that matter less: --all shows them", "dim"))
    kinds = incidents(story)
    if kinds:
        parts += ["", _incidents(kinds)]
    console.print(Padding(Group(*parts), (1, 0, 0, 2), expand=False))  # pyright: ignore[reportArgumentType]


def _incidents(kinds: Sequence[Kind]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("incidents", "how many", "steps", "cause of the last"):
        table.add_column(name, justify="right" if name == "how many" else "left", no_wrap=name != "cause of the last")
    for kind in kinds:
        steps = f"{kind.first:,}" if kind.first == kind.last else f"{kind.first:,} to {kind.last:,}"
        table.add_row(Text(plain(said(kind.what, kind.count))), f"{kind.count:,}", steps, Text(plain(kind.cause, 200)))
    return table


def _line(story: Story, tag: str, width: int, console: Console) -> str:
    begin, end = story.first_step or 0, story.last_step or 0
    rate = tag in story.tags.rates
    return sparkline(*story.series(tag), width, begin=begin, end=end, log=rate, lasting=rate, plain=_ascii(console))


def _ascii(console: Console) -> bool:
    return not console.encoding.lower().startswith("utf")
