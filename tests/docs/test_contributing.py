"""CONTRIBUTING.md says what is so: its example works as it is printed, its tables are the package's and the tests'."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import lightning_lr as llr

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

NEW = ("halve.py", "test_halve.py")
"""Files that the page tells how to make."""


def test_the_callback_that_it_shows_passes_the_tests_that_it_shows(tmp_path: Path) -> None:
    shown = dict(re.findall(r"^<!-- file: (\S+) -->\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    assert tuple(shown) == NEW
    callback, tests = (shown[name] for name in NEW)
    # as if its name had been entered
    (tmp_path / "halve.py").write_text(callback.replace("from lightning_lr import Halve", "from halve import Halve"))
    entered = "import lightning_lr as llr\nfrom halve import Halve\n\nllr.Halve = Halve\n"
    (tmp_path / "test_halve.py").write_text(tests.replace("import lightning_lr as llr\n", entered))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), *NEW]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run(
        [*command, *settings], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_its_table_of_rooms_has_their_arrows() -> None:
    table = PAGE.split("<!-- rooms -->")[1].split("<!-- end -->")[0]
    told = re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE)
    law = runpy.run_path(str(ROOT / "tests" / "package" / "test_rooms.py"))["ROOMS"]
    assert {room: set(re.findall(r"`(\w+)`", others)) for room, others in told} == law


def test_it_tells_of_every_helper_of_the_tests() -> None:
    told = set(re.findall(r"^\| `(\w+\.py)` \|", PAGE, re.MULTILINE))
    assert told == {path.name for path in (ROOT / "tests").glob("*.py")} - {"__init__.py"}


def test_what_it_names_is_there() -> None:
    named = set(re.findall(r"(?:tests|docs|benchmarks|lightning_lr|\.ci)/[\w/.-]*\w(?:\.\w+)?", PAGE))
    made = {path for path in named if path.endswith(NEW) or "NAME" in path}
    assert [path for path in sorted(named - made) if not (ROOT / path).exists()] == []


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {llr.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
