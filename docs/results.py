"""What the benchmarks have written to `benchmarks/results`, row by row, and how a table of it is written in a page."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
EARLIER = "as printed by an earlier run"

Row = dict[str, Any]


class Table(NamedTuple):
    """What stands between two markers.

    Args:
        columns: their names.
        rows: of cells.
        files: of results that they come from, for the line below; none: no line.
    """

    columns: list[str]
    rows: list[list[object]]
    files: list[str]

    def text(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        text = "\n".join("| " + " | ".join(map(plain, cells)) + " |" for cells in lines)
        below = f"\n*{' '.join(command(file) for file in self.files)}*\n" if self.files else ""
        return f"\n{text}\n{below}\n"


@functools.cache
def result(file: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{file}.json").read_text())


def exists(file: str) -> bool:
    return (RESULTS / f"{file}.json").exists()


def rows(file: str, table: str) -> list[Row]:
    kept = result(file)["tables"][table]
    return [dict(zip(kept["columns"], cells, strict=True)) for cells in kept["rows"]]


def one(file: str, table: str, **where: object) -> Row:
    """The only row with these cells; a blank in a column's name is written `_`."""
    found = [row for row in rows(file, table) if all(row[k.replace("_", " ")] == v for k, v in where.items())]
    if len(found) != 1:
        raise ValueError(f"{file}.json: {table!r} must have one row with {where}, it has {len(found)}")
    return found[0]


def command(file: str) -> str:
    """What has printed a result, whether by an earlier run, and what is to be known of it."""
    found = result(file)
    words = [f"`{found['benchmark']} {found['arguments']}".rstrip() + "`"]
    words += [EARLIER] if "source" in found else []
    words += [found["note"]] if "note" in found else []
    return ", ".join(words) + "."


def plain(cell: object) -> str:
    """A cell in which numbers are easy to read: 1e+02 is 100, a factor has a real sign."""
    text = re.sub(r"\b(\d(?:\.\d+)?)e\+0?(\d)\b", lambda m: f"{float(m[1]) * 10 ** int(m[2]):.0f}", str(cell))
    return re.sub(r"\b(\d+)/(\d+)\b", r"\1 of \2", text)


def total(cells: Iterable[str]) -> str:
    """The sum of cells such as 3/7."""
    pairs = [cell.split("/") for cell in cells]
    return f"{sum(int(part) for part, _ in pairs)}/{sum(int(whole) for _, whole in pairs)}"


def count(cell: str) -> str:
    """The number alone, of 11 (15%)."""
    return cell.split(" ")[0]
