"""Routes: the page's files, and the answers about runs as JSON."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable
from typing import Any

from tensorboard.backend import http_util
from tensorboard.util import tb_logging
from werkzeug import wrappers

from lightning_lr.tensorboard import files
from lightning_lr.tensorboard.answers import finding, heat, records, series
from lightning_lr.tensorboard.parameters import BadRequestError, Parameters
from lightning_lr.tensorboard.story_cache import StoryCache

DAY = 86_400

VERSION = 1
"""The version of the answers."""


class Routes:
    """The applications of the plugin.

    Args:
        stories: of all runs.
    """

    def __init__(self, stories: StoryCache) -> None:
        self._stories = stories

    def apps(self) -> dict[str, Callable[..., Any]]:
        """The applications by route; `/static/*` stands for all routes that begin with `/static/`."""
        of_a_run = {"series": series, "records": records, "finding": finding, "heat": heat}
        return {
            "/index.js": _file,
            "/static/*": _file,
            "/plotly.js": _plotly,
            "/runs": _json(self._runs),
            **{f"/{name}": _json(functools.partial(self._of_a_run, answer)) for name, answer in of_a_run.items()},
        }

    def _runs(self, parameters: Parameters) -> dict[str, Any]:
        return {"version": VERSION, "runs": self._stories.runs()}

    def _of_a_run(self, answer: Callable[[Any, Parameters], dict[str, Any]], parameters: Parameters) -> dict[str, Any]:
        name = parameters.text("run")
        with self._stories.story(name) as story:
            return {"run": name, **answer(story, parameters)}


@wrappers.Request.application
def _file(request: wrappers.Request) -> wrappers.Response:
    file = files.static(request.path.rpartition("/")[2])
    if file is None:
        return http_util.Respond(request, "there is no such file", "text/plain", code=404)
    return http_util.Respond(request, file.content, file.kind, content_encoding="gzip")


@wrappers.Request.application
def _plotly(request: wrappers.Request) -> wrappers.Response:
    file = files.plotly()
    return http_util.Respond(request, file.content, file.kind, content_encoding="gzip", expires=DAY)


def _json(answer: Callable[[Parameters], dict[str, Any]]) -> Callable[..., Any]:
    """An application that always answers with JSON; an error has a status and a sentence."""

    @wrappers.Request.application
    def respond(request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            return _error(request, 405, f"the method must be GET, got {request.method}: nothing can be changed here")
        try:
            found = answer(Parameters(request.args))
        except BadRequestError as error:
            return _error(request, error.status, str(error))
        except Exception as error:
            # TensorBoard and its other tabs keep running, and this tab's page says what went wrong
            tb_logging.get_logger().error("lightning_lr: %s", traceback.format_exc())
            return _error(request, 500, f"{type(error).__name__}: {error}; TensorBoard's own output has more")
        return http_util.Respond(request, json.dumps(found, allow_nan=False), "application/json")

    return respond


def _error(request: wrappers.Request, status: int, words: str) -> wrappers.Response:
    return http_util.Respond(request, {"error": words, "status": status}, "application/json", code=status)
