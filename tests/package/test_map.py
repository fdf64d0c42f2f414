"""The tests as a map: a folder for each room, and one marked test for each invariant of docs/carry-on.md."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import lightning_lr

TESTS = Path(__file__).parents[1]
PACKAGE = Path(lightning_lr.__file__).parent

OWN = {"docs", "old", "package", "whole_runs"}
"""Folders of tests that are of no single room: the pages, kept files, the package from outside, whole runs."""

SAID = re.findall(r"^(\d+)\. \*\*", (TESTS.parent / "docs" / "carry-on.md").read_text(), re.M)


def test_every_folder_of_tests_is_a_rooms_or_one_of_a_few() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"} <= rooms | OWN


def test_each_invariant_has_one_obvious_test() -> None:
    marked = [
        number
        for path in TESTS.rglob("test_*.py")
        for number in re.findall(r"^@pytest\.mark\.invariant\((\d+)\)$", path.read_text(), re.M)
    ]
    assert Counter(marked) == Counter(SAID)
    assert len(SAID) == 15


@pytest.mark.parametrize("helper", sorted(path.name for path in TESTS.glob("*.py") if path.name != "__init__.py"))
def test_a_helper_says_what_it_is_for(helper: str) -> None:
    assert re.match(r'""".{30,}', (TESTS / helper).read_text())
