"""The tables in the manual are those that the benchmarks have printed; a page that says something else is found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
MARKER = re.compile(r"<!-- table: ([\w-]+) -->")


def tables(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / "tables.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Of the pages, of what makes them and of the results."""
    for page in [*pages(ROOT), *(ROOT / "docs").glob("*.py"), *RESULTS]:
        kept = tmp_path / page.relative_to(ROOT)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(page, kept)
    return tmp_path


def test_the_pages_say_what_the_benchmarks_printed() -> None:
    done = tables(ROOT, "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md", "docs/cost.md"])
def test_a_figure_that_no_benchmark_printed_is_found_and_mended(page: str, copy: Path) -> None:
    before = (copy / page).read_text()
    start = MARKER.search(before)
    assert start is not None
    cell = re.compile(r"\d(?= of| us|\.\d)").search(before, start.end())
    assert cell is not None
    (copy / page).write_text(before[: cell.start()] + str((int(cell[0]) + 1) % 10) + before[cell.end() :])
    done = tables(copy, "--check")
    assert done.returncode == 1
    assert page in done.stderr
    assert tables(copy).returncode == 0
    assert (copy / page).read_text() == before
    assert tables(copy, "--check").returncode == 0


def test_a_result_that_is_measured_anew_makes_its_pages_stale(copy: Path) -> None:
    kept = copy / "benchmarks" / "results" / "divergence.json"
    kept.write_text(kept.read_text().replace("124/126", "99/126"))
    said = tables(copy, "--check").stderr
    assert "README.md" in said
    assert "docs/measured.md" in said


def test_a_table_that_there_is_not_is_named(copy: Path) -> None:
    (copy / "docs" / "new.md").write_text("<!-- table: figurs -->\n<!-- end -->\n")
    done = tables(copy)
    assert done.returncode != 0
    assert "there is no table 'figurs'" in done.stderr


def test_every_table_is_on_a_page() -> None:
    defined = set(re.findall(r'"([\w-]+)": \w+(?:\.\w+)?,', (ROOT / "docs" / "tables.py").read_text()))
    assert {name for page in pages(ROOT) for name in MARKER.findall(page.read_text())} == defined


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_how_it_was_made_and_not_where(path: Path) -> None:
    found = json.loads(path.read_text())
    assert (ROOT / "benchmarks" / found["benchmark"]).exists()
    assert "source" in found or {"date", "versions", "processor", "cores"} <= set(found)
    known = {"benchmark", "arguments", "date", "versions", "processor", "cores", "gpu", "note", "source", "tables"}
    assert set(found) <= known
    told = json.dumps({key: value for key, value in found.items() if key != "tables"})
    assert re.findall(r"/\w+/|\\\\|localhost", told) == []
    for table in found["tables"].values():
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
