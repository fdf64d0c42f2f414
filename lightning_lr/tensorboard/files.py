"""Files: the page's own, and plotly's; compressed once, and kept."""

from __future__ import annotations

import gzip
import re
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
    return File(KINDS[path.suffix], gzip.compress(path.read_bytes(), mtime=0))


@cache
def plotly() -> File:
    """plotly.js, as the Python package `plotly` brings it.

    Raises:
        FileNotFoundError: that package has no such file.
    """
    return File(KINDS[".js"], gzip.compress(plotly_text().encode(), compresslevel=6, mtime=0))


def plotly_text() -> str:
    """plotly.js as text."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def plotly_version() -> str:
    """The version of the Python package, for an address that changes with it."""
    return metadata.version("plotly")


MODULES = (
    *("text", "palette", "range", "source", "axes", "choices", "now", "lanes", "figure"),
    *("timeline", "detail", "table", "finder", "heat", "page"),
)
"""The page's modules, each after those that it imports from."""

_IMPORT = re.compile(r'^import \{[^}]*\} from "[^"]*";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=function |async |const )", re.MULTILINE)


def bundle() -> str:
    """The page as one script, for a file that stands alone; it defines `createPage`.

    Their imports name nothing anew, and no two modules have the same name at their top, so that all fit in one scope.
    """
    texts = [(STATIC / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)
