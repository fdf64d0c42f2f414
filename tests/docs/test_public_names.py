"""Every public name stands in the manual; every callback has its page, and its row in the README's table."""

from __future__ import annotations

import re
from pathlib import Path

import lightning_lr as llr
from lightning_lr.callbacks.base import LRCallback

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_public_name_is_in_the_reference_and_no_other() -> None:
    named = re.findall(r"^::: lightning_lr\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    assert sorted(named) == sorted(llr.__all__)


def test_every_callback_has_a_row_in_the_readme_and_at_the_start_and_a_page() -> None:
    public = {name: getattr(llr, name) for name in llr.__all__}
    callbacks = {name for name, it in public.items() if isinstance(it, type) and issubclass(it, LRCallback)}
    rows = re.findall(r"^\| \[`(\w+)`\]\((\S+)\)", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert {name for name, _ in rows} == callbacks | {"autopilot"}
    assert [page for _, page in rows if not (ROOT / page).exists()] == []
    start = re.findall(r"^\| \[`(\w+)`\]\(", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.M)
    assert sorted(start) == sorted(name for name, _ in rows)
