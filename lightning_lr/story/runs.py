"""Runs: the folders with event files under a log folder, by the names that TensorBoard gives them."""

from __future__ import annotations

import os

from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories
from tensorboard.compat import tf


class NothingToRead(Exception):  # noqa: N818
    """There is no run in the folder; the message says why."""


def runs(logdir: str) -> dict[str, str]:
    """Finds the runs.

    Args:
        logdir: a folder, at any depth above the event files; any place that TensorBoard can read.

    Returns:
        The folder of each run by its name: its path below `logdir`, or "." for `logdir` itself; sorted.

    Raises:
        NothingToRead: where there is no such folder, or no event file below it.
    """
    if not tf.io.gfile.exists(logdir):
        raise NothingToRead(f"{logdir}: there is no such folder")
    if not tf.io.gfile.isdir(logdir):
        raise NothingToRead(f"{logdir} is a file: give the folder that it is in, {os.path.dirname(logdir) or '.'}")
    found = {os.path.relpath(folder, logdir): folder for folder in GetLogdirSubdirectories(logdir)}
    if not found:
        raise NothingToRead(
            f"{logdir}: no event files in this folder or below it. They are written by a Trainer with "
            f"logger=TensorBoardLogger(...), which is Lightning's default where tensorboard is installed"
        )
    return dict(sorted(found.items()))


def event_files(folder: str) -> list[str]:
    """The event files in a folder, not those below it."""
    names = [name for name in tf.io.gfile.listdir(folder) if "tfevents" in os.path.basename(name)]
    return sorted(os.path.join(folder, os.path.basename(name)) for name in names)
