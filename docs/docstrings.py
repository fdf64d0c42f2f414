"""How the API reference reads the docstrings, for mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Gives griffe the words that it knows for what the docstrings say."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
        # a line of its own, not the title of a section
        text = re.sub(r"^Source: ", "**Source:** ", text, flags=re.MULTILINE)
        if isinstance(obj, griffe.Class) and any(str(base) == "NamedTuple" for base in obj.bases):
            # griffe knows the fields of a dataclass as arguments, those of a named tuple only as attributes
            text = re.sub(r"^( *)(\w+), (\w+): (.*)", r"\1\2: \4\n\1\3: \4", text, flags=re.MULTILINE)
            text = text.replace("\nArgs:\n", "\nAttributes:\n")
        obj.docstring.value = text
