"""Every way to train, with every callback alone and with all: nothing breaks, and every invariant holds."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_lr as llr
from tests.callback_sets import ACTIVE, ALL, NEUTRAL, made
from tests.ways import WAYS
from tests.witness import Faults, Fit, check, check_resumed, check_same


def cells(config: pytest.Config, *, alone: bool) -> list[tuple[str, str]]:
    """Every way with all callbacks, and with each; by default alone are just a few of them, in every third way."""
    names = list(NEUTRAL)
    return [
        (way, which)
        for way in WAYS
        for which in [ALL, *names]
        if which not in WAYS[way].without
        and (
            which == ALL
            or config.getoption("--long")
            or (alone and zlib.crc32(way.encode()) % 3 == 0 and which == names[zlib.crc32(way.encode()) % len(names)])
        )
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = cells(metafunc.config, alone="at_work" in metafunc.function.__name__)
    metafunc.parametrize("cell", found, ids=[f"{way}-{which}" for way, which in found])


_plain: dict[str, Fit] = {}


def plain(name: str, root: Path) -> Fit:
    if name not in _plain:
        _plain[name] = Fit(WAYS[name], root / "plain")
    return _plain[name]


def test_callbacks_with_nothing_to_do_leave_the_run_as_it_is_bit_for_bit(cell: Any, tmp_path: Path) -> None:
    name, which = cell
    run = Fit(WAYS[name], tmp_path / "run", made(NEUTRAL, which, WAYS[name]))
    check_same(run, plain(name, tmp_path))
    check(run, plain(name, tmp_path))


def test_callbacks_at_work_keep_every_invariant(cell: Any, tmp_path: Path) -> None:
    name, which = cell
    way, without = WAYS[name], plain(name, tmp_path)
    batches = len(without.witness.rests)
    spoil = way.faults and way.whole and which in (ALL, "DivergenceGuard")
    # weights break at a batch that makes an update: before it nobody can know
    steps = [0, *(rest["step"] for rest in without.witness.rests)]
    updating = [b for b in range(batches) if steps[b + 1] > steps[b]]
    broken = next((b for b in updating if b >= batches * 7 // 8), -1)
    faults = Faults({batches * 3 // 4: "nan", broken: "weights"} if spoil else {})
    ours = made(ACTIVE, which, way)
    # not within a window of accumulation, whose gradients no checkpoint holds
    save = next(b for b in updating if b >= batches * 2 // 3) if way.whole and way.resumes else None
    run = Fit(way, tmp_path / "run", ours, faults, save)
    check(run, without)
    if not way.whole:
        return
    guard, finder, plateau = run.one(llr.DivergenceGuard), run.one(llr.LRFinder), run.one(llr.PlateauDecay)
    assert finder is None or len(finder.findings) == 1
    assert not spoil or (guard.skips + guard.rewinds >= 2 and guard.rewinds >= 1), (guard.skips, guard.rewinds)
    # a rate that nobody found is not lowered
    lost = finder is not None and finder.found_nothing
    assert plateau is None or plateau.state.decays >= 1 or lost
    if save is not None:
        saved = torch.load(tmp_path / "run" / "mid.ckpt", weights_only=True)
        held = [group["lr"] for state in saved["optimizer_states"] for group in state["param_groups"]]
        assert held == run.witness.rests[save]["rates"]
        rest = Fit(way, tmp_path / "rest", made(ACTIVE, which, way), faults, resume=tmp_path / "run" / "mid.ckpt")
        check_resumed(rest, run)
