"""The examples run as a user would run them, and say what they should."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fresh import python

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def interpreter(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As `python`, but nothing is imported before."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False, cwd=cwd)


def output(example: str, *arguments: str, calm: Path | None = None, start: Callable[..., Any] = python) -> str:
    """What it prints; with `calm`, a fresh folder that it is run in, it has to do so without a warning."""
    done = start(str(EXAMPLES / example), *arguments, cwd=calm or EXAMPLES)
    assert done.returncode == 0, done.stderr
    if calm is not None:
        for scare in (r"\.py:\d+: .*", r"(?i).*\b(warning|deprecated|will be deleted|error)\b.*"):
            assert not re.findall(scare, done.stdout + done.stderr)
    return done.stdout


def test_digits_ends_at_one_accuracy_whatever_the_rate_and_tells_its_story(tmp_path: Path) -> None:
    accuracies = set()
    for rate in ("1e-6", "100"):
        said = output("digits.py", "--logs", str(tmp_path), "--epochs", "12", "--rate", rate)
        assert re.search(r"step \d+: LRFinder \(at the start\): rate 0\.00", said)
        assert re.search(r"AdamW: first update at \S+, LRFinder \S+", said)
        accuracy = re.search(r"held-out accuracy (\S+)", said)
        assert accuracy
        accuracies.add(accuracy.group(1))
        assert f"tensorboard --logdir {tmp_path}" in said
    assert len(accuracies) == 1
    assert float(accuracies.pop()) > 0.93
    assert list(tmp_path.glob("digits/version_0/events*"))


def test_rescue_shows_the_stock_run_dying_and_the_guarded_one_ending_near_the_tuned(tmp_path: Path) -> None:
    said = output("rescue.py", "--logs", str(tmp_path), calm=tmp_path)
    found = re.search(r"well-tuned (\S+), too high (\S+), too high with the guard (\S+)", said)
    assert found
    tuned, dead, saved = (float(accuracy) for accuracy in found.groups())
    assert dead < 0.2
    assert tuned > 0.94
    # the start's failure has cost the rate a little more than it had to
    assert saved > tuned - 0.03
    assert "step 300: DivergenceGuard: dropped this update: the loss is not finite" in said
    rewound = r"step (\d+): DivergenceGuard: rewound to step (\d+) \(\d+ updates lost\), factor .*"
    trial = r"loss \S+ here, \S+ at the copy's weights \(\d and \d batches\): the weights are to blame"
    rewinds = re.findall(rewound + trial, said)
    assert rewinds[0][1] == "0"
    assert any(400 < int(step) < 420 and 300 < int(to) <= 400 for step, to in rewinds)
    assert re.search(rf"guard.summary\(\): judged 600, .*dropped 1, .*rewinds {len(rewinds)}, ", said)


def test_two_processes_have_one_rate(tmp_path: Path) -> None:
    said = output("two_processes.py", "--logs", str(tmp_path), calm=tmp_path)
    first, second = re.findall(r"rank \d: ([0-9a-f]{16}) \d+ updates", said)
    assert first == second
    assert said.count("first update at") == 1


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        # what is told while torch, Lightning and the package are imported: once is enough
        (("digits.py", "--epochs", "2"), interpreter),
        (("cli.py", "fit", "--config", f"{EXAMPLES}/cli.yaml", "--trainer.max_epochs=2"), python),
    ],
)
def test_a_first_run_in_a_fresh_folder_scares_nobody(arguments: Any, start: Any, tmp_path: Path) -> None:
    output(*arguments, calm=tmp_path, start=start)
