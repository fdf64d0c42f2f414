"""Several processes: each rank keeps the invariants, all ranks do the same, and one that fails takes nobody hostage."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_lr as llr
from lightning_lr.shards import reshard
from tests.callback_sets import ACTIVE, ALL, NEUTRAL, made
from tests.fresh import SECONDS, own_environment, python
from tests.launched import updates
from tests.pool import Pool
from tests.small import Loader, pl
from tests.ways import BATCHES, SIZE, WAYS, Net, Way
from tests.witness import Faults, Fit, check, check_healthy, check_over, check_rates, check_record, check_same

ALONE = {
    "after Lightning's LearningRateFinder": "it looks at one rank's loss, so that two ranks can find two rates",
    "several loaders, longest": "a rank that has run out of one loader leaves its share of the net without gradients",
    "unfreezing": "DDP reduces no gradient of what was frozen when it wrapped the model",
    "no loss at times": "Lightning refuses it on several ranks",
    "early stopping": "its ranks agree by a collective of their own, as the other ways show",
}
"""Ways that stock Lightning itself can't go on several ranks, or that show nothing new there."""

SAMPLE = ("plain", "accumulation, clipped, 16-mixed", "two optimizers", "averaged weights (SWA)", "no length")

UNUSED = "ddp_find_unused_parameters_true"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" in metafunc.fixturenames:
        names = [n for n in WAYS if n not in ALONE] if metafunc.config.getoption("--long") else SAMPLE
        metafunc.parametrize("name", names)


def fit_on_a_rank(name: str, ranks: int, root: str) -> dict[str, Any]:
    """A plain run, one with callbacks that have nothing to do, and one with faults on the last rank only."""
    way, folder = WAYS[name], Path(root)
    more = {"devices": ranks, "strategy": UNUSED}
    plain = Fit(way, folder / "plain", **more)
    neutral = Fit(way, folder / "neutral", made(NEUTRAL, ALL, way), **more)
    check_same(neutral, plain)
    check(neutral, plain)
    batches = len(plain.witness.rests)
    steps = [0, *(rest["step"] for rest in plain.witness.rests)]
    broken = next((b for b in range(batches * 7 // 8, batches) if steps[b + 1] > steps[b]), -1)
    spoil = way.faults and way.whole
    faults = Faults({batches * 3 // 4: "nan", broken: "weights"} if spoil else {}, rank=ranks - 1)
    active = Fit(way, folder / "active", made(ACTIVE, ALL, way), faults, **more)
    check(active, plain)
    guard = active.one(llr.DivergenceGuard)
    return {
        "traces": [run.trace for run in (plain, neutral, active)],
        "weights": [[rest["weights"] for rest in run.witness.rests] for run in (plain, neutral, active)],
        "story": [re.sub("not finite: .*", "", line) for line in active.one(llr.LRMonitor).story]
        if "LRMonitor" not in way.without
        else [],
        "incidents": (guard.skips, guard.rewinds) if spoil else (1, 1),
        "collectives": active.witness.collectives,
        "more": len(neutral.witness.collectives) - len(plain.witness.collectives),
        "occasions": neutral.witness.attempts + len(neutral.witness.validations),
        "overflows": neutral.witness.attempts - len(neutral.trace) if "16-mixed" in name else 0,
    }


def agree(answers: list[dict[str, Any]]) -> None:
    for other in answers[1:]:
        for what in answers[0]:
            assert other[what] == answers[0][what], what
    assert sum(answers[0]["incidents"]) >= 2


def test_two_ranks_are_one_run(name: str, pool: Pool, tmp_path: Path) -> None:
    answers = pool.run(fit_on_a_rank, name, 2, str(tmp_path))
    agree(answers)
    # one small collective for each update, one for each validation, a second look at each norm that is not finite, and
    # a few at the start
    assert answers[0]["more"] <= answers[0]["occasions"] + answers[0]["overflows"] + 8


@pytest.mark.parametrize("way", SAMPLE)
def test_four_ranks_are_one_run(way: str, four: Pool, long: bool, tmp_path: Path) -> None:
    if not long:
        pytest.skip("four processes on torchrun's two nodes are enough for the short form")
    agree(four.run(fit_on_a_rank, way, 4, str(tmp_path)))


# sharded -------------------------------------------------------------------------------------------------------------


class Sharded(Net):
    """The small net, its parameters DTensors where the strategy shards; dropout and its like would need no equal."""

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, pl.strategies.ModelParallelStrategy):
            from torch.distributed.fsdp import fully_shard

            for part in (self.backbone, self.head):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


SHARDED = Way(Sharded, data=functools.partial(Loader, BATCHES, SIZE))
FAULTS = {54: "nan", 63: "weights"}


def fit_sharded(root: str, faults: dict[int, str], save: int | None = None, resume: bool = False) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if "RANK" in os.environ:
        more = {"devices": 2, "strategy": pl.strategies.ModelParallelStrategy(2, 1)}
    ckpt = Path(root) / "mid.ckpt" if resume else None
    run = Fit(SHARDED, Path(root), made(ACTIVE, ALL, SHARDED), Faults(faults), save, ckpt, **more)
    check_rates(run)
    check_healthy(run)
    if not resume:
        check_record(run)
    check_over(run)
    reshard(run.model)  # the last validation has gathered them
    guard, finder = run.one(llr.DivergenceGuard), run.one(llr.LRFinder)
    return {
        "trace": run.trace,
        "rests": [{**rest, "random": None} for rest in run.witness.rests],
        "findings": finder.findings,
        "incidents": (guard.skips, guard.rewinds),
        "changes": run.one(llr.LRMonitor).changes,
        "local": sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in run.model.parameters()),
    }


def test_sharded_over_two_ranks_the_run_is_that_of_one_process_bit_for_bit(pool: Pool, tmp_path: Path) -> None:
    alone = fit_sharded(str(tmp_path / "one"), FAULTS)
    assert alone["incidents"][1] >= 1
    answers = pool.run(fit_sharded, str(tmp_path / "two"), FAULTS)
    for answer in answers:
        assert answer.pop("local") < alone["local"]
        for what, found in answer.items():
            assert found == alone[what], what


def test_a_sharded_run_that_is_resumed_ends_as_if_uninterrupted(pool: Pool, tmp_path: Path) -> None:
    whole = pool.run(fit_sharded, str(tmp_path), {}, 48)[0]
    for rest in pool.run(fit_sharded, str(tmp_path), {}, None, True):
        assert rest["trace"] == whole["trace"][len(whole["trace"]) - len(rest["trace"]) :]
        assert rest["rests"] == whole["rests"][49:]
        assert rest["findings"] == whole["findings"]


# launched as users launch them ---------------------------------------------------------------------------------------


def launch(*arguments: Any, root: Path) -> subprocess.CompletedProcess[str]:
    # the first rank; Lightning's launchers start the others as they always do
    return python("-m", "tests.launched", *map(str, arguments), str(root), cwd=root)


def records(root: Path, ranks: int) -> list[Any]:
    return [json.loads((root / f"rank-{rank}.json").read_text()) for rank in range(ranks)]


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp"])
def test_every_launcher_of_ddp_gives_the_same_run_on_every_rank(strategy: str, long: bool, tmp_path: Path) -> None:
    if not long:
        pytest.skip("the long form: pytest --long")
    done = launch(strategy, 2, 1, "nan", root=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = records(tmp_path, 2)
    assert first == second
    assert first["skips"] + first["rewinds"] >= 1
    assert len(first["findings"]) == 1
    assert len(first["rates"]) == updates(first)


def test_two_nodes_of_two_processes_started_by_torchrun(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # fresh interpreters, each with a hash seed of its own: no order of a set may decide what ranks do together
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"),
                *(f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *("-m", "tests.launched", "ddp", "2", "2", "nan", str(tmp_path)),
            ],
            cwd=tmp_path,
            env=own_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    told = [node.communicate(timeout=SECONDS)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(told)
    found = records(tmp_path, 4)
    assert all(one == found[0] for one in found)
    assert found[0]["skips"] + found[0]["rewinds"] >= 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", "the user's own error on rank 1"),
        ("raise in the step", "the user's own error on rank 1"),
        ("no metric", "must be logged on every rank alike, but rank 1 did not log it"),
        ("die", ""),
    ],
)
def test_a_rank_that_fails_ends_the_run_with_its_error_and_no_rank_hangs(
    fault: str, words: str, long: bool, tmp_path: Path
) -> None:
    if fault != "no metric" and not long:
        pytest.skip("the long form: pytest --long")
    done = launch("ddp", 2, 1, fault, root=tmp_path)
    assert done.returncode != 0
    assert words in done.stderr
    assert not list(tmp_path.glob("rank-*.json"))
