"""The manual can be built without a warning, loads nothing from a network, and has every public name."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_lr as llr

ROOT = next(parent for parent in Path(__file__).parents if (parent / "pyproject.toml").exists())

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")),
    reason="needs the extra docs",
)


def build(home: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        capture_output=True,
        text=True,
        timeout=300,
        # the words of mkdocs-material about its own future
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
        cwd=home,
    )


def test_the_manual_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {path.relative_to(tmp_path): path.read_text(encoding="utf-8") for path in tmp_path.glob("**/*.html")}
    loads = r'<(?:script|img|iframe)[^>]*\bsrc="?(?:https?:)?//[^>]*|<link[^>]*\bhref="?(?:https?:)?//[^>]*'
    assert {str(page): found for page, text in pages.items() if (found := re.findall(loads, text))} == {}
    reference = pages[Path("api/index.html")]
    assert [name for name in llr.__all__ if f'id="lightning_lr.{name}"' not in reference] == []


def test_a_link_that_leads_nowhere_is_found_out(tmp_path: Path) -> None:
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "lightning_lr").symlink_to(ROOT / "lightning_lr")
    links = ["no-page.md", "index.md#no-anchor", "figures/no-figure.png"]
    with (tmp_path / "docs" / "compose.md").open("a", encoding="utf-8") as page:
        page.write("".join(f"\n[a link]({link})\n" for link in links))
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    warned = [line for line in done.stderr.splitlines() if "WARNING" in line]
    assert [link for link in links if not any(link.split("#")[-1] in line for line in warned)] == []
    assert len(warned) == len(links)
