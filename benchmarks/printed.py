"""What a benchmark prints in tables, kept: as Markdown on the console, and with `--json FILE` as JSON.

The JSON has the cells as they were printed, and what they hang on: arguments, date, versions, processor. It has no path
and no name of a host. `docs/tables.py` makes the tables of the manual from it.

    {"benchmark": "quiet.py", "arguments": "--tasks digits", "date": "2026-11-25", "versions": {"python": ...},
     "processor": "AMD EPYC", "cores": 2,
     "tables": {"quiet": {"columns": ["task", ...], "rows": [["digits", 135, ...]]}}}
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import lightning_lr as llr

PACKAGES = ["torch", "pytorch-lightning", "scikit-learn"]

TABLES: dict[str, dict[str, Any]] = {}
"""Of this process, by name, in the order in which they were begun."""


def keep(name: str, columns: list[str], rows: list[list[object]]) -> None:
    """Keeps a table that is printed otherwise."""
    TABLES[name] = {"columns": columns, "rows": rows}


def head(name: str, title: str, *columns: str) -> None:
    """Begins a table."""
    keep(name, list(columns), [])
    print(f"\n{title}\n")
    _line(columns)
    _line(["---"] * len(columns))


def row(*cells: object) -> None:
    """A row of the table that was begun last."""
    latest = list(TABLES.values())[-1]
    if len(cells) != len(latest["columns"]):
        raise ValueError(
            f"a row must have {len(latest['columns'])} cells, {latest['columns']}, got {len(cells)}: {cells}"
        )
    latest["rows"].append(list(cells))
    _line(cells)


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed as JSON, too")
    parser.add_argument(
        "--note", help="for the JSON: what is to be known of this run, such as other work on the machine"
    )


def write(parser: argparse.ArgumentParser, args: argparse.Namespace, *packages: str, made: Path | None = None) -> None:
    """Writes all tables where `--json` says, if it does.

    Args:
        parser: of the arguments.
        args: that were given.
        packages: whose versions matter too, where they are installed.
        made: the file that outcomes were kept in; its date is theirs.
    """
    if args.json is None:
        return
    day = datetime.date.today() if made is None else datetime.date.fromtimestamp(made.stat().st_mtime)
    found: dict[str, Any] = {
        "benchmark": parser.prog,
        "arguments": _given(parser, args),
        "date": day.isoformat(),
        "versions": _versions(*packages),
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    if args.note:
        found["note"] = args.note
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(as_text({**found, "tables": TABLES}))


def as_text(found: dict[str, Any]) -> str:
    """JSON with one line a row."""
    tables = found.pop("tables")
    lines = [f" {json.dumps(key)}: {json.dumps(value)}," for key, value in found.items()]
    lines.append(' "tables": {')
    for name, table in tables.items():
        lines += [f"  {json.dumps(name)}: {{", f'   "columns": {json.dumps(table["columns"])},', '   "rows": [']
        lines.append(",\n".join(f"    {json.dumps(cells)}" for cells in table["rows"]))
        lines.append("   ]\n  }" + ("," if name != list(tables)[-1] else ""))
    return "\n".join(["{", *lines, " }", "}"]) + "\n"


def _line(cells: Any) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def _given(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The arguments that say what was measured, as they are written on a command line."""
    words = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if not action.option_strings or value == action.default or isinstance(value, Path) or action.dest in _ASIDE:
            continue
        several = value if isinstance(value, list) else [] if value is True else [value]
        words += [action.option_strings[-1], *map(str, several)]
    return " ".join(f"'{word}'" if " " in word else word for word in words)


_ASIDE = ["help", "note", "only_show", "jobs", "label", "verbose"]
"""Arguments that change nothing about what is measured."""


def _versions(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "lightning_lr": llr.__version__}
    for package in [*PACKAGES, *packages]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    """Its model, and where the system tells them family and number, which tell apart what the name doesn't."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name
