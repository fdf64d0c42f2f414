"""The summary of a run, for the page's first request."""

from __future__ import annotations

from typing import Any

from lightning_lr.story.health import health_of


def summary(name: str, story: Any) -> dict[str, Any]:
    """A run in short: its sentence, the tags to ask for, and the steps that it spans."""
    tags = story.tags
    told = health_of(story)
    return {
        "name": name,
        "now": told.to_dict(),
        "groups": story.groups,
        "factors": story.factors,
        "rate_tags": tags.rates,
        "factor_tags": tags.factors,
        "loss_tags": tags.losses,
        "update_tags": tags.updates,
        "findings": len(story.findings),
        "first_step": story.first_step,
        "last_step": story.last_step,
        "time": story.time,
        "writing": story.writing,
        "remarks": story.remarks,
        "records": len(story.records),
        "has_data": story.has_data,
    }
