"""Every piece of Python on the pages runs: page by page, and the recipes one by one.

A fence of Python is run in its page's namespace, after those before it. `<!-- setup ... -->` is run first and not
shown; `<!-- not run: REASON -->` before a fence leaves it out. A fence whose first line is `# NAME.py` or `# NAME.yaml`
is a file, and a fence of `sh` that begins with `python NAME.py` runs it in a process of its own.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fresh import python

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PIECE = re.compile(
    r"<!-- setup\n(?P<setup>.*?)-->"
    r"|(?P<skip><!-- not run: [^\n]+ -->\n+)?^```(?P<kind>python|yaml|sh)\n(?P<code>.*?)^```"
    r"|^## (?P<title>[^\n]+)",
    re.S | re.M,
)
IN_PARTS = {"recipes.md"}
"""Pages of which each section stands alone, after what comes before the first."""


class Piece(NamedTuple):
    """A fence: its kind (`setup` for a comment), its code, the line that it begins at."""

    kind: str
    code: str
    line: int


def sections(page: Path) -> dict[str, list[Piece]]:
    """The pieces to run, by section; what is before the first section is in each of a page in parts."""
    text = page.read_text()
    found: dict[str, list[Piece]] = {"": []}
    for match in PIECE.finditer(text):
        if match["title"] is not None:
            if page.name in IN_PARTS:
                found[match["title"]] = []
            continue
        line = text.count("\n", 0, match.start("setup" if match["kind"] is None else "code")) + 1
        if match["kind"] is None:
            found[""].insert(0, Piece("setup", match["setup"], line))
        elif match["skip"] is None:
            found[list(found)[-1]].append(Piece(match["kind"], match["code"], line))
    first = found.pop("")
    return {title: [*first, *pieces] for title, pieces in found.items()} if found else {"": first}


def runs(piece: Piece) -> bool:
    """Whether it is a program of the page's own: most fences of `sh` are not."""
    return piece.kind == "python" or (piece.kind == "sh" and piece.code.startswith("python train.py"))


CASES = {
    f"{page.relative_to(ROOT)}{title and ': ' + title}": (page, pieces)
    for page in PAGES
    if page.exists()
    for title, pieces in sections(page).items()
    if any(map(runs, pieces))
}


def run(page: Path, pieces: list[Piece], folder: Path) -> dict[str, Any]:
    """Runs the pieces in their order; gives the namespace that they leave."""
    names: dict[str, Any] = {"__name__": "snippets"}
    for piece in pieces:
        file = re.match(r"# ([\w-]+\.(?:py|yaml))\n", piece.code)
        if file is not None:
            (folder / file[1]).write_text(piece.code)
        if piece.kind == "sh" and runs(piece):
            for command in piece.code.splitlines():
                again(command.split()[1:], folder)
        elif piece.kind in ("python", "setup") and "__main__" not in piece.code:
            # the lines of an error are those of the page
            exec(compile("\n" * (piece.line - 1) + piece.code, str(page), "exec"), names)
    return names


def again(arguments: list[str], folder: Path) -> None:
    """Runs a script as a user does."""
    done = python(*arguments, cwd=folder)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:.*Consider increasing the value of the `num_workers`")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_what_stands_on_a_page_runs(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("digits_model", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    page, pieces = CASES[case]
    run(page, pieces, tmp_path)


def test_a_broken_snippet_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n\n<!-- setup\nx = 1\n-->\n\n```python\nassert x == 1\n```\n\n```python\nassert x == 2\n```\n"
    )
    with pytest.raises(AssertionError) as broken:
        run(page, sections(page)[""], tmp_path)
    assert broken.traceback[-1].lineno + 1 == 12


def test_a_page_whose_snippet_is_not_run_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs four GPUs -->\n```python\nraise ValueError\n```\n")
    assert sections(page)[""] == []
