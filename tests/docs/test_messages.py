"""No message of a run is missing in docs/messages.md: the sources are read for all that is said in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())
PAGE = ROOT / "docs" / "messages.md"
PACKAGE = ROOT / "lightning_lr"

READERS = ("story", "report", "tensorboard")
"""Rooms that read the files of runs, and say nothing in one."""

WORDS = 3
"""A fixed piece of a message with fewer words is not its own."""

SAYERS = ("rank_zero_warn", "rank_zero_info", "console", "say", "tell", "_say", "set_factor", "Verdict", "Suggestion")
"""Of what is handed to them as it is, a piece of one word less is demanded too."""

UNSAID = (
    "has no attribute",  # of a module
    "out of memory",  # torch's words, looked for
    "not in a sweep",  # a scheduler's interval
    "torch.amp.GradScaler.step's optimizer",  # whose name is missing, part of an error
    "the ledger of rates",  # whose state is saved, part of an error
    "an earlier release of lightning_lr",
    # in pictures, and lists of words
    "incidents (set smoothing to 0)",
    "update by weight",
    "is 0 from here",
    "beyond, or not finite (",
    "acc accuracy",
    "loss losses",
    # mistakes in code that calls the package's own parts
    "a rate's factor must be finite and >= 0, got",
    "one trial rate for each of the",
    "param groups is needed, got",
    "a curve needs one loss for each rate, got",
    "index must be in [0,",
    "), the batches kept so far, got",
    "the trial's state is in place already",
    "points must be at least",
)
"""Beginnings of words that nobody reads as a message of a run, or only as a part of another one."""


class Reader(ast.NodeVisitor):
    """Gathers what is said in words: strings of several words, but for docstrings and what figures show."""

    def __init__(self) -> None:
        self.found: list[tuple[int, list[str]]] = []
        self._handed: set[int] = set()

    def visit(self, node: ast.AST) -> None:
        for statement in getattr(node, "body", None) or () if not isinstance(node, (ast.IfExp, ast.Lambda)) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                # a docstring, of whatever it stands under
                statement.value.value = None
        super().visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        pass

    def visit_Call(self, node: ast.Call) -> None:
        name = called(node)
        if name in ("split", "compile", "sub", "match", "search"):
            return
        if name in SAYERS:
            self._handed.update(id(part) for part in node.args)
        self.visit(node.func)
        for part in node.args:
            self.visit(part)
        for keyword in node.keywords:
            if keyword.arg not in ("label", "loc", "title"):
                self.visit(keyword.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self.add(node)
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.add(node)

    def add(self, node: ast.JoinedStr | ast.Constant) -> None:
        words = WORDS - (id(node) in self._handed)
        pieces = [" ".join(piece.split()) for piece in fixed(node)]
        pieces = [piece for piece in pieces if len(re.findall(r"[A-Za-z']{2,}", piece)) >= words and " " in piece]
        if pieces:
            self.found.append((node.lineno, pieces))


def called(node: ast.Call) -> str:
    """The last word of what is called."""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def fixed(node: ast.JoinedStr | ast.Constant) -> list[str]:
    """What of a string doesn't depend on anything."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]


def said(source: str) -> list[tuple[int, str]]:
    """The fixed pieces of all that a file says, with their lines."""
    reader = Reader()
    reader.visit(ast.parse(source))
    return [(line, piece) for line, pieces in reader.found for piece in pieces if not piece.startswith(UNSAID)]


def sources() -> Iterator[Path]:
    for path in sorted(PACKAGE.glob("**/*.py")):
        if path.relative_to(PACKAGE).parts[0] not in READERS:
            yield path


def missing(page: str, source: str) -> list[tuple[int, str]]:
    """The pieces that the page lacks; where lines are broken makes no difference."""
    text = " ".join(page.split())
    return [(line, piece) for line, piece in said(source) if piece not in text]


def test_every_message_of_a_run_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    lacking = [
        f"{path.relative_to(ROOT)}:{line}: {piece!r}"
        for path in sources()
        for line, piece in missing(page, path.read_text(encoding="utf-8"))
    ]
    assert not lacking, "docs/messages.md lacks these words of messages:\n" + "\n".join(lacking)


def test_what_is_said_in_every_way_is_found() -> None:
    source = '''
    """Words of a docstring only."""
    def f(name, journal):
        """More words of a docstring."""
        rank_zero_warn(f"{name} is far too high here, {name}")
        journal.say("one more line of it")
        line = f"{name}: the words of a variable"
        journal.tell(line + (" and some more words" if name else ""))
        journal.tell(f"{name} short words")
        raise ValueError(f"{name} must be something else")
        return Verdict("drop", f"{name} was the very cause")
    LABEL = draw(label="a label of a figure")
    found = "words that are compared" in name
    '''
    pieces = [piece for _, piece in said(source.replace("\n    ", "\n"))]
    assert pieces == [
        "is far too high here,",
        "one more line of it",
        ": the words of a variable",
        "and some more words",
        "short words",
        "must be something else",
        "was the very cause",
    ]


@pytest.mark.parametrize(
    "piece", ["and two are kept; optimizer state", "the data is to blame", "; its rate was healthy for long, and stays"]
)
def test_a_page_without_one_of_them_is_found_out(piece: str) -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert piece in page
    lost = page.replace(piece, "")
    found = [words for path in sources() for _, words in missing(lost, path.read_text(encoding="utf-8"))]
    assert [words for words in found if piece in words]


def test_words_that_are_nobodys_any_more_are_excused_no_longer() -> None:
    everything = " ".join(
        " ".join(fixed(node))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Constant, ast.JoinedStr))
    )
    assert [words for words in UNSAID if words not in everything] == []


def test_every_heading_can_be_linked_to() -> None:
    text = re.sub(r"^```.*?^```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [slug(words) for words in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)]
    assert len(headings) == len(set(headings))
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert [link for link in links if link not in headings] == []


def slug(heading: str) -> str:
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
