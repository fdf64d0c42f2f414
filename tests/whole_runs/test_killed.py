"""Killed and resumed, again and again: the run ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import re
import warnings
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.killed import (
    BATCHES,
    EPOCHS,
    FAULTS,
    Leg,
    Place,
    callbacks,
    diary,
    differences,
    newest,
    read,
    run,
    said,
    survive,
)
from tests.small import Loader, Model, cosine, held_out, pl, trainer

IN_FILES = ("write", "rename", "copy", "remove")
KINDS = ("batch", "step", "gradient", "update", "validating", *IN_FILES)
AHEAD = 24
"""A place is at most so many batches after the checkpoint, so that one run is killed several times."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    long = metafunc.config.getoption("--long")
    for name, few, many in (("seed", 2, 40), ("seed_late", 1, 10), ("seed_of_two", 1, 12), ("seed_of_end", 1, 12)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, range(many if long else few))


@dataclass(frozen=True)
class Whole:
    """What a run leaves: a line for each batch and rank, the checkpoint at its end, the changes of the last leg."""

    lines: list[list[dict[str, Any]]]
    end: dict[str, Any]
    changes: list[dict[str, Any]]


def left_by(leg: Leg) -> Whole:
    end = read(leg.root / "end.ckpt")
    # those of the checkpoints' own callbacks are paths
    ours = tuple(f"{callback.name}[" for callback in callbacks())
    end["callbacks"] = {key: state for key, state in end["callbacks"].items() if key.startswith(ours)}
    changes = json.loads((leg.root / "changes-0.json").read_text())
    return Whole([diary(leg.root, rank) for rank in range(leg.size)], end, changes)


def whole(root: Path, **settings: Any) -> Whole:
    """The run that nothing interrupts."""
    leg = Leg(root, **settings)
    assert run(leg) == [0] * leg.size, said(leg)
    return left_by(leg)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(tmp_path_factory.mktemp("late"), lag=1)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return whole(tmp_path_factory.mktemp("together"), size=2)


def assert_same(uninterrupted: Whole, legs: list[Leg], *, counts: bool = True) -> None:
    """Rates, factors, decisions and weights at every batch, and all that is saved at the end, bit for bit.

    Args:
        uninterrupted: the run to which nothing happened.
        legs: of the run to which something did.
        counts: whether Lightning counted alike: a batch that raised, and was made again, counts twice for its loops and
            for the loggers' axis (and an epoch not at all, when nothing is left to be done after it).
    """
    mine, counts = left_by(legs[-1]), counts and legs[-1].done < BATCHES * EPOCHS
    assert differences(uninterrupted.lines, mine.lines) == []
    changes = uninterrupted.changes[len(uninterrupted.changes) - len(mine.changes) :]
    if counts:
        changes = [change for change in uninterrupted.changes if change["step"] >= legs[-1].done]
    found = differences(uninterrupted.end, mine.end) + differences(changes, mine.changes)
    assert [line for line in found if counts or not re.match(r"/loops/|.*/(step|steps/\d+): ", line)] == []
    assert not any("the checkpoint" in said(leg) for leg in legs), "a warning that is not true"


def test_the_run_that_is_killed_has_everything_in_it(alone: Whole, together: Whole) -> None:
    for lines in (alone.lines[0], *together.lines):
        last = lines[-1]
        assert len(lines) == BATCHES * EPOCHS
        assert last["skips"] == list(FAULTS.values()).count("nan")
        assert last["rewinds"] == list(FAULTS.values()).count("weight")
        assert last["factors"]["LRFinder"] != 1.0
    assert alone.lines[0][-1]["factors"]["PlateauDecay"] < 1.0
    assert len(findings(alone)) == 2


def findings(one: Whole) -> list[dict[str, Any]]:
    return one.end["callbacks"]["LRFinder[LRFinder]"]["own"]["findings"]


# killed ----------------------------------------------------------------------------------------------------------


def moments(lines: list[dict[str, Any]]) -> dict[str, list[int]]:
    """Batches, by what goes on in them."""
    rewinds = [a["batch"] for before, a in pairwise(lines) if a["rewinds"] > before["rewinds"]]
    return {
        "in warm-up": [a["batch"] for a in lines if a["factors"]["Warmup"] < 1.0 and not a["sweeping"]],
        "in mid-sweep": [a["batch"] for a in lines if a["sweeping"]],
        "at a rewind": rewinds,
        "right after a rewind": [batch + 1 for batch in rewinds],
        "anywhere": [a["batch"] for a in lines],
    }


def fate(seed: int, kills: int, lines: list[list[dict[str, Any]]]) -> Any:
    """Deals places out by their seed: another moment and another kind each time."""
    draw = random.Random(seed)
    at = moments(lines[0])
    # one of several that is killed from outside while they still look for each other leaves the rest waiting for it
    kinds, ranks = ((*KINDS, "outside"), (None,)) if len(lines) == 1 else (KINDS, (None, 0, 1))
    deck = [(moment, kind) for moment in at for kind in kinds]
    draw.shuffle(deck)
    left = kills

    def place(done: int) -> Place | None:
        nonlocal left
        left -= 1
        for moment, kind in deck if left >= 0 else ():
            if batches := [batch for batch in at[moment] if done <= batch < done + AHEAD]:
                deck.remove((moment, kind))
                rank = None if kind in IN_FILES else draw.choice(ranks)
                return Place(kind, draw.choice(batches), share=draw.random(), rank=rank)
        return None

    return place


def test_killed_again_and_again_it_ends_as_the_uninterrupted_run(seed: int, alone: Whole, tmp_path: Path) -> None:
    legs = survive(Leg(tmp_path, every=7 + seed % 4), fate(seed, 6, alone.lines))
    print(*legs, sep="\n")
    assert len(legs) >= 5
    assert_same(alone, legs)


def test_killed_while_a_guard_has_yet_to_judge_an_update(seed_late: int, late: Whole, tmp_path: Path) -> None:
    legs = survive(Leg(tmp_path, lag=1, every=7 + seed_late % 4), fate(seed_late, 6, late.lines))
    print(*legs, sep="\n")
    assert len(legs) >= 5
    assert_same(late, legs)


def test_two_processes_killed_both_or_one(seed_of_two: int, together: Whole, tmp_path: Path) -> None:
    legs = survive(Leg(tmp_path, size=2, every=7 + seed_of_two % 4), fate(seed_of_two, 4, together.lines))
    print(*legs, sep="\n")
    assert len(legs) >= 3
    assert_same(together, legs)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_ends_with_an_error(rank: int, tmp_path: Path) -> None:
    codes = run(Leg(tmp_path, size=2, place=Place("step", 4, rank=rank)))
    assert codes == ([-9, 1] if rank == 0 else [1, -9])


@pytest.mark.parametrize("kind", ["write", "rename", "copy"])
def test_a_half_written_checkpoint_is_told_from_a_whole_one(kind: str, tmp_path: Path) -> None:
    leg = Leg(tmp_path, place=Place(kind, 22))
    assert run(leg) == [-9]
    youngest = max(tmp_path.glob("*/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    good = newest(tmp_path)
    assert good == tmp_path / "steps" / "step=21.ckpt"
    if kind == "copy":
        # where the temporary folder is on another file system, the move is a copy
        assert youngest == tmp_path / "steps" / "step=28.ckpt"
        again = replace(leg, number=1, checkpoint=youngest, place=None)
        lines = diary(tmp_path)
        assert run(again) == [1], said(again)
        assert diary(tmp_path) == lines
    else:
        assert youngest == good
        assert len(list(tmp_path.glob("tmp*"))) == 1


# terminated, interrupted, raised ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["terminate", "raise", "interrupt"])
def test_ended_by_a_signal_or_an_exception_it_goes_on_from_there(
    way: str, seed_of_end: int, alone: Whole, tmp_path: Path
) -> None:
    draw = random.Random(seed_of_end)
    # a signal ends the batch first, and within a validation or just before it Lightning leaves that unfinished; what
    # raises leaves a batch that is made again, unless it has begun to move the weights
    kinds = ("batch", "step", "gradient", "update") if way == "terminate" else ("batch", "step", "validation")
    batches = sorted(draw.choice([b for b in at if (b + 1) % BATCHES]) for at in moments(alone.lines[0]).values())
    places = iter([Place(draw.choice(kinds), batch, way) for batch in batches])
    legs = survive(Leg(tmp_path, every=None), lambda done: next(places, None))
    print(*legs, sep="\n")
    assert len(legs) >= 4
    assert_same(alone, legs, counts=way == "terminate")


def test_an_update_that_was_judged_but_not_made_is_judged_again(tmp_path: Path) -> None:
    kept = whole(tmp_path / "whole", norm=False)
    # in a sweep, at two snapshots, at a skip
    places = iter([Place("gradient", batch, "raise") for batch in (10, 28, 34, 35)])
    legs = survive(Leg(tmp_path / "ended", every=None, norm=False), lambda done: next(places, None))
    assert [leg.done for leg in legs] == [0, 10, 28, 34, 35]
    assert_same(kept, legs, counts=False)


def test_two_processes_that_are_terminated_together_go_on_from_there(together: Whole, tmp_path: Path) -> None:
    places = iter([Place("step", 46, "terminate")])
    legs = survive(Leg(tmp_path, size=2, every=None), lambda done: next(places, None))
    assert [leg.done for leg in legs] == [0, 47]
    assert_same(together, legs)


@pytest.mark.parametrize("place", [Place("validation", 25, "terminate"), Place("validating", 25, "raise")])
def test_a_validation_that_was_broken_off_is_said_on_resume(place: Place, tmp_path: Path) -> None:
    places = iter([place, Place("batch", 34)])
    first = Leg(tmp_path, every=None)
    legs = [replace(first, number=0, place=next(places))]
    run(legs[0])
    legs.append(replace(first, number=1, place=next(places), checkpoint=newest(tmp_path)))
    assert run(legs[1]) == [-9]
    assert "saved in the middle of a validation" in said(legs[1])


# sharded ---------------------------------------------------------------------------------------------------------


def test_sharded_weights_go_back_to_where_they_were_resumed_each_rank_to_its_own(tmp_path: Path) -> None:
    kept = whole(tmp_path / "whole", size=2, sharded=True, epochs=3, every=30)
    first = Leg(tmp_path / "killed", size=2, sharded=True, epochs=3, every=30)
    legs = survive(first, lambda done: None if done else Place("step", 32))
    assert [leg.done for leg in legs] == [0, 30]
    assert FAULTS[46] == "weight"
    for whole_lines, lines in zip(kept.lines, left_by(legs[-1]).lines, strict=True):
        # Lightning saves the buffers of one rank, and here nothing makes them equal
        assert differences(*([{**line, "buffers": 0} for line in one[:46]] for one in (whole_lines, lines))) == []
        assert lines[46]["rewinds"] == 1
        assert lines[46]["weights"] in [line["weights"] for line in lines[29:45]]


# with and without ------------------------------------------------------------------------------------------------


def messages(fit: Any, model: Any, checkpoint: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit.fit(model, Loader(4), held_out(), ckpt_path=str(checkpoint))
    return [str(warning.message) for warning in caught]


def test_a_run_without_the_package_is_told_which_callbacks_state_it_leaves_out(tmp_path: Path) -> None:
    first = trainer(tmp_path, callbacks=callbacks(), logger=pl.loggers.CSVLogger(tmp_path), max_epochs=30)
    first.fit(Model(cosine), Loader(4), held_out())
    first.save_checkpoint(tmp_path / "with.ckpt")
    model = Model(cosine)
    said_by_lightning = messages(trainer(tmp_path, max_epochs=31), model, tmp_path / "with.ckpt")
    (line,) = [line for line in said_by_lightning if "Please add the following callbacks" in line]
    assert all(callback.state_key in line for callback in callbacks())
    assert len(model.trace) == 4


def test_a_run_with_the_package_says_which_callbacks_start_afresh(tmp_path: Path) -> None:
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Model(cosine), Loader(4), held_out())
    first.save_checkpoint(tmp_path / "without.ckpt")
    again = trainer(tmp_path, callbacks=callbacks(), logger=pl.loggers.CSVLogger(tmp_path), max_epochs=12)
    told = messages(again, Model(cosine), tmp_path / "without.ckpt")
    # LRMonitor keeps nothing that a run goes on from
    for name in ("Warmup", "PlateauDecay", "DivergenceGuard", "LRFinder"):
        assert f"the checkpoint holds no state of {name}: it starts afresh at step 4" in told
