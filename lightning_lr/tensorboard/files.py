"""Files: the page's own and plotly's, compressed once and kept."""

from __future__ import annotations

import gzip
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

KINDS = {".js": "text/javascript", ".css": "text/css"}

STATIC = Path(__file__).parent / "static"


class File(NamedTuple):
    """A file to be sent: its MIME type, and its content, gzipped."""

    kind: str
    content: bytes


@cache
def static(name: str) -> File | None:
    """One of the page's own files, or None."""
    path = STATIC / name
    if path.parent != STATIC or path.suffix not in KINDS or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").replace("PLOTLY_VERSION", metadata.version("plotly"))
    return File(KINDS[path.suffix], gzip.compress(text.encode(), mtime=0))


@cache
def plotly() -> File:
    """plotly.js, as the Python package `plotly` ships it.

    Raises:
        FileNotFoundError: when the package has no such file.
    """
    return File(KINDS[".js"], gzip.compress(plotly_text().encode(), compresslevel=6, mtime=0))


def plotly_text() -> str:
    """plotly.js as text."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
