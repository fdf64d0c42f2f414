"""Pages: what TensorBoard gets besides scalars: text, records, and a layout for its custom scalars."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any

from lightning_lr.internals import file_writer
from lightning_lr.record.curves import EVENTS, FACTOR, INCIDENT, UPDATE
from lightning_lr.record.records import PLUGIN, as_summary


def write_records(loggers: Iterable[Any], step: int, records: list[dict[str, Any]]) -> None:
    """Writes the records of one step into the event file of each TensorBoard logger."""
    of_step = as_summary(records) if records else None
    for logger in loggers if records else ():
        if (writer := file_writer(logger)) is not None:
            writer.add_summary(of_step, step)


def write_words(loggers: Iterable[Any], step: int, lines: list[str]) -> None:
    """Writes the entry of `lr-events` for one step."""
    text = "\n".join(f"- {line}" for line in lines) if len(lines) > 1 else "".join(lines)
    for logger in loggers if lines else ():
        if _can(logger, "add_text"):
            logger.experiment.add_text(EVENTS, text, step)


def write_layout(
    loggers: Iterable[Any], rate_tags: Iterable[str], losses: str = "(?!lr-).*loss.*", *, ratios: bool = False
) -> None:
    """Writes a layout for TensorBoard's custom scalars: rates, factors, losses and incidents on one page.

    Args:
        loggers: loggers of any kind.
        rate_tags: the tags of the rates.
        losses: a regular expression for the tags of the losses.
        ratios: whether there are points of `lr-update/`.
    """
    charts = {
        "effective rate": ["Multiline", [f"^{re.escape(tag)}$" for tag in rate_tags]],
        "factors": ["Multiline", [f"^{FACTOR}.*"]],
        "loss": ["Multiline", [losses]],
        **({"update by weight": ["Multiline", [f"^{UPDATE}.*"]]} if ratios else {}),
        # these are single points, and smoothing would draw them where there was nothing
        "incidents (set smoothing to 0)": ["Multiline", [f"^{INCIDENT}.*"]],
    }
    for logger in loggers:
        if _can(logger, "add_custom_scalars"):
            logger.experiment.add_custom_scalars({"learning rate": charts})


def address(loggers: Iterable[Any]) -> str:
    """How to open the tab "Learning rates" on what the first TensorBoard logger has written; empty without one."""
    for logger in loggers:
        if file_writer(logger) is not None:
            # the folder of all versions, so that the versions have names and appear side by side
            folder = getattr(logger, "root_dir", None) or logger.experiment.log_dir
            return f"tensorboard --logdir {shlex.quote(str(folder))}, then http://localhost:6006/#{PLUGIN}"
    return ""


def _can(logger: Any, what: str) -> bool:
    return hasattr(getattr(logger, "experiment", None), what)
