"""A bundle: the modules of a page as one script, for a file that stands alone."""

from __future__ import annotations

import re
from pathlib import Path

_IMPORT = re.compile(r'^import (\{[^}]*\}) from "\./(\w+)\.js";$', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function |const )(\w+)", re.MULTILINE)


def bundle(folder: Path, name: str) -> str:
    """A script that defines what the module exports.

    Each module becomes a function that returns what it exports, so that top-level names of two modules never collide.

    Args:
        folder: the folder with the modules; each imports by `import { a } from "./other.js";` on a line of its own.
        name: the module's name, without `.js`.
    """
    found: dict[str, str] = {}
    _add(folder, name, found)
    exported = ", ".join(match[2] for match in _EXPORT.finditer(_read(folder, name)))
    return "\n".join([*found.values(), f"const {{ {exported} }} = ${name};"])


def _add(folder: Path, name: str, found: dict[str, str]) -> None:
    text = _read(folder, name)
    for match in _IMPORT.finditer(text):
        if match[2] not in found:
            _add(folder, match[2], found)
    exported = ", ".join(match[2] for match in _EXPORT.finditer(text))
    body = _EXPORT.sub(r"\1\2", _IMPORT.sub(r"const \1 = $\2;", text))
    found[name] = f"const ${name} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


def _read(folder: Path, name: str) -> str:
    return (folder / f"{name}.js").read_text(encoding="utf-8")
