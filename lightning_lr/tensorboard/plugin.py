"""The plugin: what TensorBoard loads when it starts, through the entry point group `tensorboard_plugins`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tensorboard import context as requests
from tensorboard.plugins import base_plugin

from lightning_lr.tensorboard.folders import Roots, RunFolders

NAME = "lightning_lr"
"""The plugin's name, in its routes and in the metadata of the summaries that the journal writes."""

EVENTS = "lr-events/text_summary"
"""The text tag of runs that were written before there were records."""


class LearningRates(base_plugin.TBLoader):
    """Loads the tab "Learning rates", unless TensorBoard was started with `--learning_rates false`."""

    def define_flags(self, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("learning rates plugin")
        group.add_argument(
            "--learning_rates",
            choices=("true", "false"),
            default="true",
            help='whether to have the tab "Learning rates" of lightning_lr (default: true)',
        )

    def load(self, context: base_plugin.TBContext) -> Any:
        if getattr(context.flags, "learning_rates", "true") == "false":
            return None
        return Tab(context)


class Tab(base_plugin.TBPlugin):
    """The tab's backend. It reads the event files itself, exactly, and takes the names of the runs from TensorBoard.

    TensorBoard's own reader keeps only a sample of each tag's points, which loses steps and changes. With its fast data
    server there is no other way to get all points.
    """

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        flags = context.flags
        logdir, spec = context.logdir or getattr(flags, "logdir", None), getattr(flags, "logdir_spec", None)
        self._provider = context.data_provider
        # with --logdir_spec, the context's logdir is the spec
        self._runs = RunFolders(Roots(None if spec else logdir, spec), self._names)

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        from lightning_lr.tensorboard.routes import Routes
        from lightning_lr.tensorboard.story_cache import StoryCache

        return Routes(StoryCache(self._runs.folders)).apps()

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        # the page polls by itself while a run is being written
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Learning rates", disable_reload=True)

    def is_active(self) -> bool:
        """Whether any run has data of this package; the search runs in the background."""
        return bool(self._runs.folders())

    def _names(self) -> list[str]:
        if self._provider is None:
            return []
        names: set[str] = set()
        for plugin, tags in ((NAME, None), ("text", {EVENTS})):
            listed = self._provider.list_tensors(requests.RequestContext(), experiment_id="", plugin_name=plugin)
            names |= {run for run, series in listed.items() if tags is None or tags & set(series)}
        return sorted(names)
