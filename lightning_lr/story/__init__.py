"""The story of a run's learning rates, read from its event files: without torch, and without Lightning."""

from lightning_lr.story.health import Now, now
from lightning_lr.story.runs import NothingToRead, runs
from lightning_lr.story.story import Story, Tags
from lightning_lr.story.thin import thin

__all__ = ["NothingToRead", "Now", "Story", "Tags", "now", "runs", "thin"]
