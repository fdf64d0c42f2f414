"""Folders: where the event files of a run lie, by the name that TensorBoard gives it."""

from __future__ import annotations

import os


class Roots:
    """The folders that TensorBoard was started with.

    Args:
        logdir: as given to `--logdir`; None or empty: not given.
        spec: as given to `--logdir_spec`: `name:folder` or `folder`, several with commas between.

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

    def candidates(self, run: str) -> list[str]:
        """The folders that may be the run's, the likeliest first."""
        found = []
        for name, root in self._roots:
            if not name or run == name or run.startswith(f"{name}/"):
                rest = run[len(name) :].lstrip("/") if name else run
                found.append(root if rest in ("", ".") else os.path.join(root, rest))
        return found

    def folder(self, run: str) -> str | None:
        """The run's folder, or None if there is none."""
        from tensorboard.compat import tf

        return next((folder for folder in self.candidates(run) if tf.io.gfile.isdir(folder)), None)
