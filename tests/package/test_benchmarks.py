"""The script for GPUs runs without one as far as it can, and says so where it can't; the one for rates runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.fresh import python

HERE = Path(__file__).resolve().parent.parent.parent

CHECKS = (
    "at rest: host memory of copies",
    "in a trial: it happened",
    "in a trial: host memory of copies",
    "in a rewind: it happened",
    "in a rewind: host memory of copies",
    "a rewind, bit for bit",
    "a NaN under a gradient scaler",
    "a compiled step, a tensor rate that moves",
    "a checkpoint's size",
    "copies held after fit",
)
"""What is judged on the CPU too."""


def run(*arguments: str, script: str = "gpu.py") -> subprocess.CompletedProcess[str]:
    return python(str(HERE / "benchmarks" / script), *arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_needs_one() -> None:
    done = run()
    assert done.returncode == 1
    assert done.stderr == (
        "benchmarks/gpu.py needs a GPU, and torch finds none: --cpu --quick runs what can be run without\n"
    )


def test_what_can_be_run_without_a_gpu_passes(long: bool) -> None:
    if not long:
        pytest.skip("the long form: pytest --long")
    done = run("--cpu", "--quick")
    passed = [line for line in done.stdout.splitlines() if line.startswith("pass")]
    for check in CHECKS:
        assert any(check in line for line in passed), done.stdout + done.stderr


@pytest.mark.parametrize(("half", "kind", "length"), [("tune", "two groups", 100), ("report", "front", 20)])
def test_rates_are_measured_once_and_shown_again(half: str, kind: str, length: int, tmp_path: Path) -> None:
    cache = tmp_path / "rates.json"
    which = ["--half", half, "--kinds", kind, "--lengths", str(length), "--seeds", "1", "--cache", str(cache)]
    first = run(*which, "--jobs", "1", script="rates.py")
    assert first.returncode == 0, first.stderr
    for optimizer in ("sgd", "adamw"):
        for arm, found in json.loads(cache.read_text())[f"runs|{kind}|{optimizer}|0|{length}"].items():
            assert "raised" not in found, (arm, found)
            # a run of 20 updates has no room for a sweep
            assert (found["pick"] is not None) == (length == 100), (arm, found)
    again = run(*which, "--jobs", "1", "--json", str(tmp_path / "printed.json"), script="rates.py")
    assert again.stdout == first.stdout[first.stdout.index("\n**") :]
    # what was printed, cell by cell, and how it was made, but not where
    text = (tmp_path / "printed.json").read_text()
    found = json.loads(text)
    lines = ["| " + " | ".join(map(str, row)) + " |" for table in found["tables"].values() for row in table["rows"]]
    assert len(lines) > 4
    assert [line for line in lines if line not in again.stdout.splitlines()] == []
    assert found["arguments"].endswith(f"--lengths {length} --seeds 1")
    assert found["versions"]["torch"] == torch.__version__
    assert str(tmp_path) not in text
