"""The rooms of the package: what each may know of the others and of the world, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_lr

PACKAGE = Path(lightning_lr.__file__).parent

GROUND = {"arguments", "saved", "shards", "console", "internals"}
"""Files and one folder on which every room may stand."""

ROOMS: dict[str, set[str]] = {
    "statistics": set(),
    "policies": {"statistics"},
    "rates": set(),
    "copies": set(),
    "signals": set(),
    "batches": {"copies", "signals"},
    "trials": {"batches", "copies", "rates"},
    "record": {"rates", "statistics"},
    "run": {"rates", "record"},
    "guard": {"copies", "policies", "rates", "record", "run", "signals", "trials"},
    "sweeps": {"batches", "copies", "policies", "rates", "record", "run", "signals", "trials"},
    "monitoring": {"rates", "record", "run", "signals", "story"},
    "callbacks": {"copies", "guard", "monitoring", "policies", "rates", "record", "run", "signals", "sweeps", "trials"},
    "story": {"record", "statistics"},
    "tensorboard": {"statistics", "story"},
    "report": {"record", "statistics", "story", "tensorboard"},
}
"""Which other rooms each room imports; the arrows go one way."""

LIGHT = {
    "policies": {"numpy", "time", "random", "logging", "os"},
    "statistics": {"time", "random", "logging", "os"},
    "story": set(),
    "tensorboard": set(),
    "report": set(),
}
"""Rooms that know neither torch nor Lightning, and what else they don't know."""

HEAVY = {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"}


def imports(room: str) -> Iterator[tuple[str, str]]:
    """(file, module) for every import of a room, those within functions too."""
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, node.module or ""
                if node.module == "lightning_lr":
                    yield from ((path.name, f"lightning_lr.{alias.name}") for alias in node.names)


def test_every_folder_is_a_room_of_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"internals"}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_those_below_it_and_no_others(room: str) -> None:
    known = {(file, module.split(".")[1]) for file, module in imports(room) if module.startswith("lightning_lr.")}
    wrong = {(file, other) for file, other in known if other not in GROUND | ROOMS[room] | {room, "__version__"}}
    assert wrong == set()


def test_the_arrows_between_rooms_make_no_circle() -> None:
    left = {room: set(others) for room, others in ROOMS.items()}
    while free := [room for room, others in left.items() if not others & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}


@pytest.mark.parametrize("room", LIGHT)
def test_a_light_room_knows_neither_torch_nor_lightning(room: str) -> None:
    outside = HEAVY | LIGHT[room]
    assert [(file, module) for file, module in imports(room) if module.split(".")[0] in outside] == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_opens_with_what_may_be_in_it_and_what_it_must_not_know(room: str) -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert said is not None
    assert len(said.splitlines()) >= 3


def test_no_file_is_longer_than_three_hundred_lines() -> None:
    long = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}
