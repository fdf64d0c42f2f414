"""The package gives its names when they are asked for, and imports torch and Lightning only then."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_lr as llr


@pytest.mark.parametrize(
    "module",
    [
        *("lightning_lr", "lightning_lr.record.records", "lightning_lr.story.health", "lightning_lr.report.cli"),
        *("lightning_lr.tensorboard.plugin", "lightning_lr.tensorboard.routes", "lightning_lr.tensorboard.summary"),
    ],
)
def test_tensorboard_and_the_report_need_not_wait_for_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'lightning', 'pytorch_lightning')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_there() -> None:
    assert {name for name in llr.__all__ if getattr(llr, name).__name__ != name} == set()
    assert set(llr.__all__) <= set(dir(llr))
    names: dict[str, object] = {}
    exec("from lightning_lr import *", names)
    assert set(llr.__all__) <= set(names)
    with pytest.raises(AttributeError, match="module 'lightning_lr' has no attribute 'nothing'"):
        _ = llr.nothing


def test_what_a_type_checker_sees_is_what_is_given() -> None:
    tree = ast.parse(Path(llr.__file__).read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {name.name: str(node.module).removeprefix("lightning_lr.") for node in imports for name in node.names}
    assert seen == llr._HOME
    assert sorted(seen) == sorted(llr.__all__)
