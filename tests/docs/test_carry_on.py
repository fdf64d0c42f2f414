"""What the page for those who carry on says of rooms and tests is so."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
PAGE = (ROOT / "docs" / "carry-on.md").read_text(encoding="utf-8")


def test_every_test_that_it_names_is_there() -> None:
    named = re.findall(r"`tests/\.\.\./(test_\w+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 30
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("**/test_*.py")}
    assert [(file, name) for file, name in named if f"def {name}(" not in sources.get(file, "")] == []


def test_it_tells_of_every_room() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE))
    assert told == {path.parent.name for path in (ROOT / "lightning_lr").glob("*/__init__.py")} - {"internals"}


def test_each_invariant_names_a_test() -> None:
    points = re.findall(r"^\d+\. \*\*(.*?)(?=^\d+\. \*\*|^And )", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert len(points) == 15
    assert [point[:40] for point in points if "::test_" not in point] == []
