"""An HTML page: a report that needs no other file, made of the tab's own page with its data in it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from werkzeug.datastructures import MultiDict

from lightning_lr.record.records import to_json
from lightning_lr.report.bundle import bundle
from lightning_lr.story import Story
from lightning_lr.tensorboard.answers import finding, heat, records, series
from lightning_lr.tensorboard.files import STATIC, plotly_text
from lightning_lr.tensorboard.marks import key
from lightning_lr.tensorboard.parameters import Parameters
from lightning_lr.tensorboard.summary import summary

POINTS, FEWEST, MOST = 200_000, 100, 4000
"""Points of all series together, about, and the fewest and the most of one series: 5 MB of numbers."""

RECORDS, FEWEST_RECORDS, MOST_RECORDS = 5000, 50, 2000
"""The same for the records that a click shows."""

TAGS = 64
"""The most series of one run that the page draws."""

RARE = {"run", "finding", "end", "first"}
"""Kinds of records that are never left out."""

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline'; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>Learning rates</title>
"""


def page(stories: Sequence[Story]) -> str:
    """The page. It makes no request, and its policy forbids any.

    Args:
        stories: the stories of the runs, already read.
    """
    tags = sum(len(_tags(story)) for story in stories)
    points = min(MOST, max(FEWEST, POINTS // max(1, tags)))
    most = min(MOST_RECORDS, max(FEWEST_RECORDS, RECORDS // max(1, len(stories))))
    data = {"runs": [_run(story, points, most) for story in stories]}
    inline = (Path(__file__).parent / "inline.js").read_text(encoding="utf-8")
    return "\n".join(
        [
            f"{HEAD}<style>{(STATIC / 'style.css').read_text(encoding='utf-8')}</style>",
            f"<script>{_script(plotly_text())}</script>",
            '</head>\n<body>\n<div id="page"></div>',
            f'<script type="application/json" id="data">{_data(data)}</script>',
            f'<script>"use strict";\n{_script(bundle(STATIC, "page"))}\n{_script(inline)}</script>',
            "</body>\n</html>\n",
        ]
    )


def _run(story: Story, most_points: int, most: int) -> dict[str, Any]:
    whole: list[tuple[str, str]] = [("tag", tag) for tag in _tags(story)]
    shown = [record for record in story.valid if record["kind"] in RARE]
    rest = [record for record in story.valid if record["kind"] not in RARE]
    shown += rest[-most:]
    shown.sort(key=lambda record: record["step"])
    return {
        "summary": summary(story.name, story),
        "series": {
            tag: {"steps": points["steps"], "values": [_short(value) for value in points["values"]]}
            for tag, points in series(story, _asked([*whole, ("points", str(most_points))]))["series"].items()
        },
        "marks": records(story, _asked([("bins", "200"), ("limit", "0")]))["marks"],
        "records": [{"record": record, "key": key(record)._asdict()} for record in shown],
        "findings": finding(story, _asked([]))["findings"],
        "heat": heat(story, _asked([("columns", "300")])),
    }


def _short(value: float | str | None) -> float | str | None:
    """Rounded to the digits that a scalar has in an event file."""
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _tags(story: Story) -> list[str]:
    tags = story.tags
    return [*tags.rates, *tags.factors, *tags.losses[:4]][:TAGS]


def _asked(pairs: list[tuple[str, str]]) -> Parameters:
    return Parameters(MultiDict(pairs))


def _data(data: Any) -> str:
    """JSON that no HTML parser can mistake for markup, whatever its texts contain."""
    text = json.dumps(to_json(data), allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _script(text: str) -> str:
    """A script without anything that would end its element."""
    return re.sub(r"</(?=script)", r"<\\/", text, flags=re.IGNORECASE).replace("<!--", "<\\!--")
