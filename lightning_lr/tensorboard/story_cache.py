"""A story cache: the stories of all runs, read in the background and kept."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_lr.tensorboard.parameters import NotFoundError

AGAIN = 1.0
"""Seconds between two rounds over the runs."""

IDLE = 30.0
"""Seconds without a request after which reading stops until the next request."""


class Entry:
    """One run: its story, and the summary that the page asks for first."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self.folder = name, folder
        self.begun = os.path.getmtime(folder) if os.path.isdir(folder) else 0.0
        self.lock = threading.Lock()
        self.story: Any = None
        self.summary: dict[str, Any] | None = None

    def read(self) -> None:
        """Reads what was added since the last time."""
        from lightning_lr.story.story import Story
        from lightning_lr.tensorboard.summary import summary

        with self.lock:
            try:
                if self.story is None:
                    self.story = Story(self.folder, self.name)
                if self.story.refresh() or self.summary is None or self.summary.get("writing"):
                    self.summary = summary(self.name, self.story)
            except OSError as error:
                # the folder is gone, or may not be read: its line says so, and the next round tries again
                self.summary = {"name": self.name, "has_data": False, "error": f"can't be read: {error}"}


class StoryCache:
    """Reads the stories in a thread of its own, as long as requests come.

    Args:
        folders: returns the folder of every run with our data, by the run's name.
    """

    def __init__(self, folders: Callable[[], dict[str, str]]) -> None:
        self._folders = folders
        self._entries: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._asked = float("-inf")

    def runs(self) -> list[dict[str, Any]]:
        """The summary of each run, sorted by name; a run that hasn't been read yet only says that it is being read."""
        self._list()
        self._awake()
        return [entry.summary or {"name": name, "reading": True} for name, entry in sorted(self._entries.items())]

    @contextmanager
    def story(self, name: str) -> Iterator[Any]:
        """The story of a run, which no other thread reads or changes meanwhile.

        Raises:
            NotFoundError: when no run with our data has that name.
        """
        self._list()
        self._awake()
        entry = self._entries.get(name)
        if entry is None:
            raise NotFoundError(f"run must be one of this TensorBoard's with our data, got {name!r}: see runs")
        if entry.story is None:
            entry.read()
        if entry.story is None:
            raise NotFoundError((entry.summary or {}).get("error", "can't be read"))
        with entry.lock:
            yield entry.story

    def _list(self) -> None:
        found = self._folders()
        with self._lock:
            kept = self._entries
            if found != {name: entry.folder for name, entry in kept.items()}:
                self._entries = {
                    name: kept[name] if name in kept and kept[name].folder == folder else Entry(name, folder)
                    for name, folder in found.items()
                }

    def _awake(self) -> None:
        with self._lock:
            self._asked = time.monotonic()
            if self._reader is None or not self._reader.is_alive():
                self._reader = threading.Thread(target=self._read, name="lightning_lr", daemon=True)
                self._reader.start()

    def _read(self) -> None:
        while True:
            # runs without a summary come first, and of these the latest, with which the page opens
            for entry in sorted(self._entries.values(), key=lambda entry: (entry.summary is not None, -entry.begun)):
                entry.read()
            time.sleep(AGAIN)
            with self._lock:
                if time.monotonic() - self._asked > IDLE:
                    self._reader = None
                    return
