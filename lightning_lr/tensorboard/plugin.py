"""The plugin: what TensorBoard loads at its start, by the entry point in the group `tensorboard_plugins`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from tensorboard import context as requests
from tensorboard.plugins import base_plugin

NAME = "lightning_lr"
"""Of the plugin: in its routes, and in the metadata of the summaries that the journal writes."""

EVENTS = "lr-events/text_summary"
"""The text tag that runs have which were written before there were records."""

LOOK_AGAIN = 10.0
"""Seconds until the question whether there are such runs is asked again."""


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
    """The tab's backend: it reads the event files itself, exactly, and takes the runs' names from TensorBoard.

    TensorBoard's own reader keeps a sample of each tag's points, in which steps and changes get lost; and with its fast
    data server there is no other way to all of them.
    """

    plugin_name = NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._context = context
        self._active = False
        self._looked = float("-inf")

    def get_plugin_apps(self) -> dict[str, Callable[..., Any]]:
        from lightning_lr.tensorboard.routes import Routes
        from lightning_lr.tensorboard.shelf import Shelf

        return Routes(Shelf(self.folders)).apps()

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        # the page asks by itself while a run is being written
        return base_plugin.FrontendMetadata(es_module_path="/index.js", tab_name="Learning rates", disable_reload=True)

    def is_active(self) -> bool:
        """Whether some run has what this package wrote; TensorBoard asks often, so it is not looked up each time."""
        if not self._active and time.monotonic() - self._looked >= LOOK_AGAIN:
            self._looked = time.monotonic()
            self._active = bool(self._names())
        return self._active

    def folders(self) -> dict[str, str]:
        """The folder of each run that has our data, by TensorBoard's name for the run."""
        from lightning_lr.tensorboard.folders import Roots

        flags = self._context.flags
        roots = Roots(self._context.logdir or getattr(flags, "logdir", None), getattr(flags, "logdir_spec", None))
        found = {name: roots.folder(name) for name in self._names()}
        return {name: folder for name, folder in found.items() if folder is not None}

    def _names(self) -> list[str]:
        provider = self._context.data_provider
        if provider is None:
            return []
        names: set[str] = set()
        for plugin, tags in ((NAME, None), ("text", {EVENTS})):
            listed = provider.list_tensors(requests.RequestContext(), experiment_id="", plugin_name=plugin)
            names |= {run for run, series in listed.items() if tags is None or tags & set(series)}
        return sorted(names)
