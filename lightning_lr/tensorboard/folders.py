"""Folders: where the event files of runs with our data are, by the names that TensorBoard gives the runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

HEAD = 256 * 2**10
"""Bytes at the beginning of an event file in which our data is looked for; it is nearly always in the first few."""

SIGNS = (b"lightning_lr", b"lr-events")
"""What shows our data: the plugin's name, or the text tag of runs from before there were records."""

AGAIN = 5.0
"""Seconds until the folders are searched again, as in TensorBoard."""

AT_ONCE = 0.5
"""Seconds that the first answer waits; a folder with very many files takes longer and comes with the next answer."""


class Roots:
    """The folders that TensorBoard was started with.

    Args:
        logdir: the value of `--logdir`; None or empty if not given.
        spec: the value of `--logdir_spec`: `name:folder` or `folder`, separated by commas.

    Example:
        >>> Roots("/logs", None).candidates("a/b")
        ['/logs/a/b']
        >>> Roots("/logs", None).candidates(".")
        ['/logs']
        >>> Roots(None, "old:/logs/1,/logs/2").candidates("old/x")
        ['/logs/1/x', '/logs/2/old/x']
    """

    def __init__(self, logdir: str | None, spec: str | None) -> None:
        self._roots: list[tuple[str, str]] = []
        if logdir:
            self._roots.append(("", os.path.expanduser(logdir)))
        for part in (spec or "").split(",") if spec else []:
            name, colon, folder = part.partition(":")
            named = bool(colon) and not part.startswith("/") and not folder.startswith("//")
            self._roots.append((name, os.path.expanduser(folder)) if named else ("", os.path.expanduser(part)))

    def walk(self) -> Iterator[tuple[str, str]]:
        """Name and folder of everything with event files on local disks."""
        from tensorboard.backend.event_processing.io_wrapper import GetLogdirSubdirectories

        for name, root in self._roots:
            if "://" in root or not os.path.isdir(root):
                continue
            for folder in GetLogdirSubdirectories(root):
                run = os.path.relpath(folder, root)
                yield (os.path.join(name, run) if name else run), folder

    def candidates(self, run: str) -> list[str]:
        """The folders that may be the run's, most likely first."""
        found = []
        for name, root in self._roots:
            if not name or run == name or run.startswith(f"{name}/"):
                rest = run[len(name) :].lstrip("/") if name else run
                found.append(root if rest in ("", ".") else os.path.join(root, rest))
        return found

    def folder(self, run: str) -> str | None:
        """The run's folder, or None."""
        from tensorboard.compat import tf

        return next((folder for folder in self.candidates(run) if tf.io.gfile.isdir(folder)), None)


class RunFolders:
    """The folders of runs with our data, looked for in the background.

    TensorBoard lists a run only when it has read much of it, which can take minutes. So the folders are searched too.

    Args:
        roots: where to look.
        listed: returns the names of the runs that TensorBoard knows to have our data.
    """

    def __init__(self, roots: Roots, listed: Callable[[], list[str]]) -> None:
        self._roots, self._listed = roots, listed
        self._found: dict[str, str] = {}
        self._ours: set[str] = set()
        self._seen: dict[str, int] = {}
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None
        self._looked = float("-inf")

    def folders(self) -> dict[str, str]:
        """The folder of each run by its name, as far as found."""
        with self._lock:
            if self._looking is None and time.monotonic() - self._looked >= AGAIN:
                self._looking = threading.Thread(target=self._look, name="lightning_lr runs", daemon=True)
                self._looking.start()
            looking = self._looking
        if looking is not None and not self._found:
            looking.join(AT_ONCE)
        return self._found

    def _look(self) -> None:
        try:
            found = {name: folder for name, folder in self._roots.walk() if self._has_signs(folder)}
            for name in self._listed():
                folder = found.get(name) or self._roots.folder(name)
                if folder is not None:
                    found[name] = folder
            self._found = found
        finally:
            with self._lock:
                self._looked = time.monotonic()
                self._looking = None

    def _has_signs(self, folder: str) -> bool:
        if folder in self._ours:
            return True
        with os.scandir(folder) as listed:
            entries = list(listed)
        for entry in entries:
            size = entry.stat().st_size if "tfevents" in entry.name else 0
            seen = self._seen.get(entry.path, 0)
            if seen >= min(size, HEAD):
                continue
            with open(entry.path, "rb") as file:
                head = file.read(HEAD)
            self._seen[entry.path] = len(head)
            if any(sign in head for sign in SIGNS):
                self._ours.add(folder)
                return True
        return False
