"""A JSON report, whose content docs/report.md describes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lightning_lr.record.records import to_json as plain
from lightning_lr.report.tables import incidents
from lightning_lr.story import Story, health_of, thin

VERSION = 1
"""Changes when a field is removed or changes its meaning, but not for new fields."""

POINTS = 1000
"""The most points of one series."""


def as_json(stories: Iterable[Story]) -> str:
    """The runs as one JSON object."""
    return json.dumps({"version": VERSION, "runs": [run(story) for story in stories]}, allow_nan=False)


def run(story: Story) -> dict[str, Any]:
    """One run as plain values."""
    tags = story.tags
    return plain(
        {
            "name": story.name,
            "folder": story.folder,
            "now": health_of(story).to_dict(),
            "remarks": story.remarks,
            "writing": story.writing,
            "first_step": story.first_step,
            "last_step": story.last_step,
            "begin": story.begin,
            "time": story.time,
            "groups": story.groups,
            "factors": story.factors,
            "series": {
                "rates": _series(story, tags.rates),
                "factors": _series(story, tags.factors),
                "losses": _series(story, tags.losses),
            },
            "incidents": [kind.__dict__ for kind in incidents(story)],
            "findings": story.findings,
            "records": story.records,
        }
    )


def _series(story: Story, tags: Iterable[str]) -> dict[str, Any]:
    found = {}
    for tag in tags:
        steps, values, thinned = thin(*story.series(tag), POINTS)
        found[tag] = {"steps": steps.tolist(), "values": values.tolist(), "thinned": thinned}
    return found
