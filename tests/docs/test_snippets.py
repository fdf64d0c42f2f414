"""Every piece of Python on the pages runs: page by page, and the recipes one by one.

A fence of Python is run in its page's namespace, after those before it. `<!-- setup ... -->` is run first and not
shown; `<!-- check ... -->` is run where it stands and not shown: it holds what the words beside it say.
`<!-- not run: REASON -->` before a fence leaves it out. A fence whose first line is `# NAME.py` or `# NAME.yaml` is a
file. A fence of `sh` that begins with `python NAME.py`, of such a file, is run, each of its lines in a process of its
own; a check finds their output as `printed`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.fresh import python

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

PIECE = re.compile(
    r"<!-- (?P<unseen>setup|check)\n(?P<lines>.*?)^-->"
    r"|(?P<skip><!-- not run: [^\n]+ -->\n+)?^```(?P<kind>python|yaml|sh)\n(?P<code>.*?)^```"
    r"|^## (?P<title>[^\n]+)",
    re.S | re.M,
)
IN_PARTS = {"recipes.md"}
"""Pages of which each section stands alone, after what comes before the first."""


TELLS = """
import sys, warnings

def tell(message, category, *_, **__):
    kinds = ",".join(kind.__name__ for kind in category.__mro__)
    print(f"WARNED {kinds}: {message}", file=sys.stderr)

warnings.showwarning = tell
"""
"""What a process of its own runs first: what Lightning prints of a warning leaves out its kind."""


class Piece(NamedTuple):
    """A fence or a comment: its kind, its code, the line that it begins at."""

    kind: str
    code: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that it is."""
        named = re.match(r"# ([\w-]+\.(?:py|yaml))\n", self.code)
        return None if named is None else named[1]


def sections(page: Path) -> dict[str, list[Piece]]:
    """The pieces to run, by section; what is before the first section is in each of a page in parts."""
    text = page.read_text(encoding="utf-8")
    found: dict[str, list[Piece]] = {"": []}
    for match in PIECE.finditer(text):
        if match["title"] is not None:
            if page.name in IN_PARTS:
                found[match["title"]] = []
            continue
        shown = match["unseen"] is None
        line = text.count("\n", 0, match.start("code" if shown else "lines")) + 1
        piece = Piece(match["kind"], match["code"], line) if shown else Piece(match["unseen"], match["lines"], line)
        if piece.kind == "setup":
            found[""].insert(0, piece)
        elif match["skip"] is None:
            found[list(found)[-1]].append(piece)
    first = found.pop("")
    return {title: [*first, *pieces] for title, pieces in found.items()} if found else {"": first}


def scripts(pieces: list[Piece]) -> set[str]:
    """The files that a fence of `sh` runs: most such fences run none."""
    begun = {piece.code.split()[1] for piece in pieces if piece.kind == "sh" and piece.code.startswith("python ")}
    return begun & {piece.file for piece in pieces if piece.file is not None}


CASES = {
    f"{page.relative_to(ROOT)}{title and ': ' + title}": (page, pieces)
    for page in PAGES
    for title, pieces in sections(page).items()
    if any(piece.kind == "python" for piece in pieces)
}


def run(page: Path, pieces: list[Piece], folder: Path, allowed: list[str]) -> dict[str, Any]:
    """Runs the pieces in their order; gives the namespace that they leave.

    Args:
        page: their page.
        pieces: what `sections` gave.
        folder: where their files go.
        allowed: the warnings that a process of its own may give, as pytest writes filters.
    """
    names: dict[str, Any] = {"__name__": "snippets"}
    own = scripts(pieces)
    for piece in pieces:
        if piece.file is not None:
            (folder / piece.file).write_text(piece.code, encoding="utf-8")
        if piece.kind == "sh" and any(piece.code.startswith(f"python {name}") for name in own):
            names["printed"] = "".join(again(line.split()[1:], folder, allowed) for line in piece.code.splitlines())
        elif piece.kind in ("python", "setup", "check") and piece.file not in own:
            # the lines of an error are those of the page
            exec(compile("\n" * (piece.line - 1) + piece.code, str(page), "exec"), names)
    return names


def again(arguments: list[str], folder: Path, allowed: list[str]) -> str:
    """Runs a command as a user does; gives what it prints."""
    (folder / "sitecustomize.py").write_text(TELLS, encoding="utf-8")
    search = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = python(*arguments, cwd=folder, environment=search)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    assert warned(done.stderr, allowed) == []
    return done.stdout


def warned(said: str, allowed: list[str]) -> list[str]:
    """The warnings among the words of a process, without those that pytest's filters ignore."""
    ignored = [one.split(":")[1:] for one in allowed if one.startswith("ignore:")]
    return [
        words
        for kinds, words in re.findall(r"^WARNED (\S+): (.+)$", said, re.M)
        if not any(
            re.match(text, words) and kind.rpartition(".")[2] in (*kinds.split(","), "") for text, kind in ignored
        )
    ]


@pytest.mark.parametrize("case", CASES)
def test_what_stands_on_a_page_runs(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page, pieces = CASES[case]
    for name in (piece.file for piece in pieces if piece.file is not None):
        monkeypatch.delitem(sys.modules, name.partition(".")[0], raising=False)
    torch.manual_seed(0)
    run(page, pieces, tmp_path, pytestconfig.getini("filterwarnings"))


def fails(page: Path, text: str, folder: Path) -> int:
    """The line of a page at which one of these words fails."""
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError) as broken:
        run(page, sections(page)[""], folder, [])
    return next(entry.lineno + 1 for entry in reversed(broken.traceback) if str(entry.path) == str(page))


def test_a_broken_snippet_is_found_at_its_line(tmp_path: Path) -> None:
    begin = "# A page\n\n<!-- setup\nx = 1\n-->\n\n```python\nassert x == 1\n```\n\n"
    assert fails(tmp_path / "page.md", begin + "```python\nassert x == 2\n```\n", tmp_path) == 12
    assert fails(tmp_path / "page.md", begin + "<!-- check\nassert x == 2\n-->\n", tmp_path) == 12


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("raise ValueError('broken')", "ValueError: broken"),
        ("import warnings\nwarnings.warn('a warning: of its own')", "a warning: of its own"),
    ],
)
def test_a_broken_script_is_found(script: str, said: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```python\n# a.py\n{script}\n```\n\n```sh\npython a.py\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=said):
        run(page, sections(page)[""], tmp_path, ["error", "ignore:another:UserWarning", "ignore::a.b.OtherWarning"])
    filters = ["error", "ignore:a warning:UserWarning"]
    if "warn(" in script:
        run(page, sections(page)[""], tmp_path, filters)


def test_a_page_whose_snippet_is_not_run_says_why(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs four GPUs -->\n```python\nraise ValueError\n```\n", encoding="utf-8")
    assert sections(page)[""] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_snippet_is_left_out_in_silence(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = re.findall(r"^\s*(?:```+|~~~+) *\{?\.?(?:python|py|pycon)\b", text, re.M)
    found = [piece for piece in PIECE.finditer(text) if piece["kind"] == "python"]
    assert len(fences) == len(found)
    for pieces in sections(page).values():
        mains = [piece.line for piece in pieces if "__main__" in piece.code and piece.file not in scripts(pieces)]
        assert mains == [], "what is below `if __name__` is run only in a script"
