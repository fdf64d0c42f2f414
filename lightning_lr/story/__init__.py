"""Story: what happened to the learning rates of a run, read from its event files.

It needs neither torch nor Lightning, and copes with damaged files. It shows nothing, and knows neither the tab nor the
report.
"""

from lightning_lr.statistics.thin import thin
from lightning_lr.story.health import Health, health_of
from lightning_lr.story.runs import NothingToRead, runs
from lightning_lr.story.story import Story, Tags

__all__ = ["Health", "NothingToRead", "Story", "Tags", "health_of", "runs", "thin"]
