"""How good the rates are that are found: `LRFinder` and `autopilot` on twenty-four kinds of training.

The rules were tuned on one half of the kinds (`--half tune`, `rates_a.py`); the other half (`report`, `rates_b.py`)
took no part in it. Each kind is trained with SGD (momentum 0.9) and AdamW, whatever its own optimizer is, for so many
updates. What is measured against are grids of half decades in a plain loop: of constant rates, and of rates that fall
to zero along a cosine. The finder's arms run in a real `Trainer`, from an initial rate of 1e-3; a sweep's updates count
among the run's. A run whose loss is not finite, or above 1e20, has diverged and ends at infinity.

    python benchmarks/rates.py                      # the half to report; goes on where it was stopped
    python benchmarks/rates.py --half tune --lengths 300 1000 --seeds 2
    python benchmarks/rates.py --quick              # two kinds of the tuning half, 300 updates, one seed
    python benchmarks/rates.py --only-show          # tables of what the cache has
    python benchmarks/rates.py --label new          # the finder has changed: its arms again, beside the same grids

Prodigy and schedule-free AdamW are left out where `prodigyopt` and `schedulefree` are not installed.

Normalised regret: (final held-out loss - best of the grid) / (loss at the start - best of the grid), at most 1. Ratio:
of the final loss to the best of the grid; where that may be negative, 1 + (final - best) / |best|, which is the same
where it isn't.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import printed
import pytorch_lightning as pl
import rates_a
import rates_b
import torch
from printed import head, row
from timing import quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from zoo_base import Kind

import lightning_lr as llr

HALVES: dict[str, dict[str, type[Kind]]] = {"tune": rates_a.KINDS, "report": rates_b.KINDS}
ALL: dict[str, type[Kind]] = {**HALVES["tune"], **HALVES["report"]}
QUICK = ["rare class", "tables"]

OPTIMIZERS = ("sgd", "adamw")
GRID = {
    "sgd": [10 ** (half / 2) for half in range(-10, 4)],
    "adamw": [10 ** (half / 2) for half in range(-10, 2)],
}
FIRST = 1e-3
"""The initial rate of the runs with callbacks."""

EPOCHS = 10
LOST = 1e20
CLOSE, FAR, WORSE, REGRET = 0.05, 0.2, 1.5, 0.15

RUNS = ("finder", "autopilot")
ANCHORS = {"prodigy": "prodigyopt", "schedulefree": "schedulefree"}
"""Optimizers that need no rate, and the packages that have them."""

FIXED = {"adamw": 1e-3, "sgd": 0.1}
"""What is often taken, with a cosine; in the grid already."""

Rate = Callable[[int], float]
Optimizer = torch.optim.Optimizer


# the plain loop ----------------------------------------------------------------------------------------------------


def groups(kind: Kind, rate: float) -> list[dict[str, Any]]:
    """The kind's own param groups, each at its share of the rate."""
    shares = [(group["params"], group.get("share", 1.0)) for group in kind.optimizer(rate).param_groups]
    return [{"params": params, "lr": share * rate, "share": share} for params, share in shares]


def optimizer_of(kind: Kind, name: str, rate: float) -> Optimizer:
    if name == "sgd":
        return torch.optim.SGD(groups(kind, rate), lr=rate, momentum=0.9)
    return torch.optim.AdamW(groups(kind, rate), lr=rate)


def judged(kind: Kind) -> float:
    """The held-out loss; infinite for a divergence."""
    loss = kind.held_out()
    return loss if abs(loss) < LOST else math.inf


def train(kind: Kind, optimizer: Optimizer, rate: Rate | None, lengths: list[int]) -> dict[int, float]:
    """The held-out loss after each of so many updates.

    Args:
        kind: is trained.
        optimizer: with `groups`.
        rate: at update k; None: the optimizer's own.
        lengths: in ascending order.
    """
    finals, clip = dict.fromkeys(lengths, math.inf), getattr(kind, "clip", None)
    for k in range(lengths[-1]):
        loss = kind.loss(kind.get(k), k)
        if not abs(loss.item()) < LOST:
            break
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(kind.parameters(), clip)
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(k) * group["share"]
        optimizer.step()
        if k + 1 in finals:
            finals[k + 1] = judged(kind)
    return finals


def constant(rate: float) -> Rate:
    return lambda k: rate


def cosine(rate: float, length: int) -> Rate:
    """From the rate to zero."""
    return lambda k: rate * 0.5 * (1.0 + math.cos(math.pi * k / length))


def constants(kind: str, optimizer: str, seed: int, lengths: list[int]) -> dict[str, Any]:
    """The final losses at every constant rate, by length."""
    ends = []
    for rate in GRID[optimizer]:
        model = ALL[kind](seed)
        ends.append(train(model, optimizer_of(model, optimizer, rate), constant(rate), lengths))
    return {"start": judged(ALL[kind](seed)), **{str(n): [end[n] for end in ends] for n in lengths}}


def cosines(kind: str, optimizer: str, seed: int, length: int) -> list[float]:
    ends = []
    for rate in GRID[optimizer]:
        model = ALL[kind](seed)
        run = train(model, optimizer_of(model, optimizer, rate), cosine(rate, length), [length])
        ends.append(run[length])
    return ends


def prodigy(kind: str, seed: int, length: int) -> float:
    from prodigyopt import Prodigy

    # it knows one rate only, for all groups
    model = ALL[kind](seed)
    return train(model, Prodigy(model.parameters()), None, [length])[length]


def schedule_free(kind: str, seed: int, length: int) -> float:
    from schedulefree import AdamWScheduleFree

    model = ALL[kind](seed)
    own: Any = AdamWScheduleFree(model.parameters()).defaults["lr"]
    optimizer = AdamWScheduleFree(groups(model, own))
    optimizer.train()
    if not math.isfinite(train(model, optimizer, None, [length])[length]):
        return math.inf
    optimizer.eval()
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        with torch.no_grad():
            for k in range(length, length + 50):
                model.loss(model.get(k), k)
    return judged(model)


# with Lightning ----------------------------------------------------------------------------------------------------


def module(kind: str, optimizer: str, seed: int, length: int) -> Any:
    """The kind as a module of epochs, each of a tenth of the run, with a validation at its end."""
    base: Any = ALL[kind]
    size = max(1, length // EPOCHS)

    class Stream(IterableDataset[Any]):
        def __init__(self, model: Any) -> None:
            self.model = model

        def __len__(self) -> int:
            return size

        def __iter__(self) -> Iterator[Any]:
            first = self.model.current_epoch * size
            return (self.model.get(k) for k in range(first, first + size))

    class Once(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield torch.zeros(1)

    class Module(base):
        def configure_optimizers(self) -> Any:
            return optimizer_of(self, optimizer, FIRST)

        def train_dataloader(self) -> Any:
            return DataLoader(Stream(self), batch_size=None)

        def val_dataloader(self) -> Any:
            return DataLoader(Once(), batch_size=None)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            """No faults here."""

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            """Nor anything else."""

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.loss(batch, self.current_epoch * size + batch_idx)

        def validation_step(self, batch: Any) -> None:
            self.log("val_loss", self.held_out(), batch_size=1)

    return Module(seed)


class Spent(NamedTuple):
    """Seconds of a run: by the clock, which other processes slow down, and of the processor."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def since(self) -> Spent:
        wall, cpu = self.now()
        return Spent(wall - self.wall, cpu - self.cpu)


def fit(model: Any, length: int, callbacks: list[Any]) -> tuple[pl.Trainer, Spent]:
    """The trainer after the run, and what that took."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_steps=length,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            # some losses are made of gradients
            inference_mode=False,
            gradient_clip_val=getattr(model, "clip", None),
            default_root_dir=folder,
            callbacks=callbacks,
        )
        began = Spent.now()
        trainer.fit(model)
        return trainer, began.since()


@functools.cache
def warm_up() -> None:
    """What only the first fits of a process do is not to be timed."""
    for callbacks in ([], callbacks_of("autopilot")):
        fit(module(QUICK[0], "adamw", 0, 100), 100, callbacks)


def callbacks_of(arm: str) -> list[Any]:
    if arm == "finder":
        return [llr.LRFinder(progress_bar=False)]
    return llr.autopilot("val_loss", lr_monitor=None, finder={"progress_bar": False})


def runs(kind: str, optimizer: str, seed: int, length: int) -> dict[str, Any]:
    """The finder's arms, and their times beside that of a bare run just before them."""
    warm_up()
    bare, found = fit(module(kind, optimizer, seed, length), length, [])[1], {}
    for arm in RUNS:
        model, callbacks = module(kind, optimizer, seed, length), callbacks_of(arm)
        finder = next(callback for callback in callbacks if isinstance(callback, llr.LRFinder))
        try:
            trainer, spent = fit(model, length, callbacks)
        except Exception as error:  # what a run died of is a result, too
            found[arm] = {"final": math.inf, "raised": f"{type(error).__name__}: {error}"[:300]}
            continue
        result, guards = finder.result, [c for c in callbacks if isinstance(c, llr.DivergenceGuard)]
        found[arm] = {
            "final": judged(model),
            "pick": None if result is None else result.suggestion,
            "sure": None if result is None else result.sure,
            "words": "no sweep" if result is None else result.words,
            "findings": [[finding.suggestion, finding.sure] for finding in finder.findings],
            "made": trainer.global_step,
            # those that a guard has dropped or held are among them
            "taken": trainer.global_step - finder.ledger.updates(0),
            "guard": guards[0].summary() if guards else {},
            "seconds": round(spent.wall, 3),
            "times": round(spent.wall / bare.wall, 3),
            "cpu_times": round(spent.cpu / bare.cpu, 3),
        }
    return found


# jobs --------------------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What is done in one process and kept in one piece. `what`: constants, cosines, runs, or one of `ANCHORS`."""

    what: str
    kind: str
    optimizer: str
    seed: int
    lengths: tuple[int, ...]

    def key(self, label: str) -> str:
        length = [] if self.what == "constants" else [self.lengths[0]]
        return "|".join(map(str, [self.what, self.kind, self.optimizer, self.seed, *length, *self.labels(label)]))

    def labels(self, label: str) -> list[str]:
        return [label] if label and self.what == "runs" else []


def done(job: Job) -> tuple[Job, Any]:
    kind, optimizer, seed, length = job.kind, job.optimizer, job.seed, job.lengths[0]
    if job.what == "constants":
        return job, constants(kind, optimizer, seed, list(job.lengths))
    if job.what == "cosines":
        return job, cosines(kind, optimizer, seed, length)
    if job.what == "runs":
        return job, runs(kind, optimizer, seed, length)
    return job, {"prodigy": prodigy, "schedulefree": schedule_free}[job.what](kind, seed, length)


def wanted(kinds: list[str], seeds: list[int], lengths: list[int]) -> list[Job]:
    """All jobs, seed by seed, the long ones first."""
    jobs = []
    anchors = [name for name, package in ANCHORS.items() if importlib.util.find_spec(package)]
    for seed in seeds:
        for kind in kinds:
            jobs += [Job("constants", kind, optimizer, seed, tuple(lengths)) for optimizer in OPTIMIZERS]
        for length in reversed(lengths):
            for kind in kinds:
                jobs += [Job(w, kind, o, seed, (length,)) for w in ("cosines", "runs") for o in OPTIMIZERS]
                jobs += [Job(anchor, kind, "adamw", seed, (length,)) for anchor in anchors]
    return jobs


class Results:
    """What is known, in a file that is written after every job."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, what: str, kind: str, optimizer: str, seed: int, length: int) -> Any:
        return self.known.get(Job(what, kind, optimizer, seed, (length,)).key(self.label))

    def missing(self, job: Job) -> bool:
        kept = self.known.get(job.key(self.label))
        return kept is None or (job.what == "constants" and any(str(n) not in kept for n in job.lengths))

    def make(self, jobs: list[Job], processes: int) -> None:
        """Does what isn't known yet."""
        jobs = [job for job in jobs if self.missing(job)]
        if processes > 1 and len(jobs) > 1:
            with multiprocessing.get_context("spawn").Pool(processes, quiet) as pool:
                for number, (job, found) in enumerate(pool.imap_unordered(done, jobs), 1):
                    self.keep(job, found, f"{number} of {len(jobs)}")
        else:
            for number, job in enumerate(jobs, 1):
                self.keep(*done(job), f"{number} of {len(jobs)}")

    def keep(self, job: Job, found: Any, progress: str) -> None:
        key = job.key(self.label)
        # a grid of constant rates may have had other lengths before
        self.known[key] = {**self.known.get(key, {}), **found} if isinstance(found, dict) else found
        waiting = self.path.with_suffix(".part")
        waiting.write_text(json.dumps(self.known))
        os.replace(waiting, self.path)
        print(f"{progress}: {key}", flush=True)


# tables ------------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One run beside the best of a grid.

    Args:
        kind: of training.
        optimizer: one of `OPTIMIZERS`.
        seed: of weights and batches.
        length: updates.
        found: what is known of the run.
        start: the held-out loss before it.
        grid: the final losses by rate.
    """

    kind: str
    optimizer: str
    seed: int
    length: int
    found: dict[str, Any]
    start: float
    grid: dict[float, float]

    @property
    def final(self) -> float:
        return self.found["final"]

    @property
    def best(self) -> float:
        return min(self.grid.values())

    @property
    def regret(self) -> float:
        if self.final <= self.best:
            return 0.0
        if not self.best < self.start:
            return 1.0
        return min(1.0, (self.final - self.best) / (self.start - self.best))

    @property
    def ratio(self) -> float:
        if not math.isfinite(self.final):
            return math.inf
        return 1.0 + (self.final - self.best) / abs(self.best) if self.best else math.inf

    @property
    def bad(self) -> bool:
        return self.regret > REGRET

    @property
    def unsure(self) -> bool:
        """Whether the first sweep said so, or gave no rate."""
        findings = self.found.get("findings")
        return not findings or findings[0][1] is not True

    @property
    def unsure_at_last(self) -> bool:
        """Whether the latest sweep said so: a second opinion, in long runs."""
        return self.found.get("sure") is not True

    def within(self, share: float) -> bool:
        return self.final <= self.best + share * abs(self.best)

    def cells(self) -> list[object]:
        pick, sure = self.found.get("pick"), {True: "sure", False: "unsure", None: ""}[self.found.get("sure")]
        at = min(self.grid, key=self.grid.__getitem__)
        rate = f"{at:.2g}, the grid's end" if at in (min(self.grid), max(self.grid)) else f"{at:.2g}"
        picked = "" if pick is None else f"{pick:.3g}"
        cells = [self.kind, self.optimizer, self.length, self.seed, picked, sure, f"{self.final:.4g}"]
        cells += [f"{self.best:.4g}", rate, f"{self.start:.4g}", f"{self.regret:.3f}", short(self.ratio)]
        return [*cells, self.found.get("raised", "") if "raised" in self.found or pick else self.found.get("words", "")]


def high(values: list[float], share: float = 0.9) -> float:
    """Of so large a share of the values the highest."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100.0 else f"{ratio:.2g}"


def of(count: int, cases: list[Any]) -> str:
    return f"{count} ({count / len(cases):.0%})" if cases else "0"


class Tables:
    """What is known about these kinds, seeds and lengths."""

    def __init__(self, results: Results, kinds: list[str], seeds: list[int], lengths: list[int]) -> None:
        self.results, self.kinds, self.seeds, self.lengths = results, kinds, seeds, lengths

    def grid(
        self, schedule: str, kind: str, optimizer: str, seed: int, length: int
    ) -> tuple[float, list[float]] | None:
        """The loss at the start, and the final ones; None where they aren't known."""
        flat = self.results.get("constants", kind, optimizer, seed, length)
        if flat is None:
            return None
        finals = flat.get(str(length))
        if schedule == "cosines":
            finals = self.results.get("cosines", kind, optimizer, seed, length)
        return None if finals is None else (flat["start"], finals)

    def found(self, arm: str, kind: str, optimizer: str, seed: int, length: int) -> dict[str, Any] | None:
        """What an arm's run came to."""
        where = kind, optimizer, seed, length
        if arm in RUNS:
            return (self.results.get("runs", *where) or {}).get(arm)
        final = self.results.get(arm, *where)
        if arm == "fixed":
            finals = self.results.get("cosines", *where)
            final = None if finals is None else finals[GRID[optimizer].index(FIXED[optimizer])]
        return None if final is None else {"final": final}

    def cases(self, arm: str, schedule: str, length: int, optimizers: tuple[str, ...] = OPTIMIZERS) -> list[Case]:
        cases = []
        for where in [(kind, o, seed, length) for kind in self.kinds for o in optimizers for seed in self.seeds]:
            grid, found = self.grid(schedule, *where), self.found(arm, *where)
            if grid is not None and found is not None:
                cases.append(Case(*where, found, grid[0], dict(zip(GRID[where[1]], grid[1], strict=True))))
        return cases

    def apart(self, cases: list[Case]) -> str:
        """How far the picks of several seeds lie apart."""
        picks: dict[tuple[str, str], list[float]] = {}
        for case in cases:
            if case.found.get("pick"):
                picks.setdefault((case.kind, case.optimizer), []).append(case.found["pick"])
        spreads = [max(several) / min(several) for several in picks.values() if len(several) > 1]
        return f"{statistics.median(spreads):.2g}x, {max(spreads):.2g}x" if spreads else "-"

    def finder(self) -> None:
        head(
            "finder", "**`LRFinder`, beside the best constant rate**",
            "updates", "optimizer", "cases", "mean regret", "median",
            f"above {REGRET}", "of those: unsure at first", "at last", "of all: unsure at first", "no rate",
            f"within {CLOSE:.0%}", "picks of the seeds apart: median, most",
        )  # fmt: skip
        for length in self.lengths:
            for optimizers in [*((one,) for one in OPTIMIZERS), OPTIMIZERS]:
                cases = self.cases("finder", "constants", length, optimizers)
                if not cases:
                    continue
                regrets, bad = [case.regret for case in cases], [case for case in cases if case.bad]
                row(
                    length, " and ".join(optimizers), len(cases), f"{statistics.fmean(regrets):.3f}",
                    f"{statistics.median(regrets):.3f}", of(len(bad), cases),
                    of(sum(case.unsure for case in bad), bad), of(sum(case.unsure_at_last for case in bad), bad),
                    of(sum(case.unsure for case in cases), cases), sum(not c.found.get("pick") for c in cases),
                    of(sum(case.within(CLOSE) for case in cases), cases), self.apart(cases),
                )  # fmt: skip

    def autopilot(self) -> None:
        head(
            "autopilot", "**`autopilot`, beside the best rate with a cosine to zero**",
            "updates", "arm", "optimizer", "cases",
            "final loss / best: median", "90% of cases", f"within {CLOSE:.0%}", f"within {FAR:.0%}", f"above {WORSE}x",
            "mean regret", "median",
        )  # fmt: skip
        arms: list[tuple[str, str, tuple[str, ...]]] = [("autopilot", "autopilot", (one,)) for one in OPTIMIZERS]
        arms += [("autopilot", "autopilot", OPTIMIZERS)]
        arms += [("prodigy", "Prodigy, its defaults", ("adamw",))]
        arms += [("schedulefree", "schedule-free AdamW, its defaults", ("adamw",))]
        arms += [("fixed", "AdamW 1e-3, cosine", ("adamw",)), ("fixed", "SGD 0.1, cosine", ("sgd",))]
        for length in self.lengths:
            for arm, name, optimizers in arms:
                cases = self.cases(arm, "cosines", length, optimizers)
                if not cases:
                    continue
                regrets, ratios = [case.regret for case in cases], [case.ratio for case in cases]
                grid = "its own, AdamW's grid" if arm in ANCHORS else " and ".join(optimizers)
                row(
                    length, name, grid, len(cases), short(statistics.median(ratios)), short(high(ratios)),
                    of(sum(case.within(CLOSE) for case in cases), cases),
                    of(sum(case.within(FAR) for case in cases), cases),
                    of(sum(case.ratio > WORSE for case in cases), cases),
                    f"{statistics.fmean(regrets):.3f}", f"{statistics.median(regrets):.3f}",
                )  # fmt: skip

    def cost(self) -> None:
        head(
            "cost", "**Cost, beside a bare `Trainer`**",
            "updates", "arm", "cases", "updates not made (sweeps, guard): mean",
            "most", "wall time: median", "90% of cases", "CPU time: median", "90% of cases", "raised",
        )  # fmt: skip
        for length in self.lengths:
            for arm in RUNS:
                cases = self.cases(arm, "constants", length)
                ended = [case.found for case in cases if "raised" not in case.found]
                if not ended:
                    continue
                shares = [one["taken"] / length for one in ended]
                wall, cpu = [one["times"] for one in ended], [one["cpu_times"] for one in ended]
                row(
                    length, arm, len(ended), f"{statistics.fmean(shares):.1%}", f"{max(shares):.1%}",
                    f"{statistics.median(wall):.2f}x", f"{high(wall):.2f}x", f"{statistics.median(cpu):.2f}x",
                    f"{high(cpu):.2f}x", len(cases) - len(ended),
                )  # fmt: skip

    def each(self) -> None:
        for arm, schedule in zip(RUNS, ("constants", "cosines"), strict=True):
            grid = {"constants": "constant rates", "cosines": "rates with a cosine to zero"}[schedule]
            head(
                f"{arm}, each", f"**`{arm}`, case by case, beside {grid}**",
                "kind", "optimizer", "updates", "seed", "pick", "sure",
                "final", "best", "best's rate", "start", "regret", "ratio", "error, or why no rate",
            )  # fmt: skip
            for length in self.lengths:
                for case in self.cases(arm, schedule, length):
                    row(*case.cells())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=list(HALVES), default="report", help="of the kinds")
    parser.add_argument("--kinds", nargs="+", choices=list(ALL), metavar="KIND", help="of the half; left out: all")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000], help="updates of a run; left out: 1000")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--quick", action="store_true", help="two kinds of the tuning half, 300 updates, one seed")
    parser.add_argument("--cache", type=Path, default=Path("rates.json"), help="kept after every job")
    parser.add_argument("--label", default="", help="of this version of the package, for its arms in the cache")
    parser.add_argument("--only-show", action="store_true", help="make no run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, of one thread each")
    printed.add_argument(parser)
    options = parser.parse_args()
    quiet()
    half = "tune" if options.quick else options.half
    kinds = [kind for kind in HALVES[half] if kind in (options.kinds or (QUICK if options.quick else ALL))]
    if options.kinds and len(kinds) < len(set(options.kinds)):
        parser.error(f"of --half {half} there are only {', '.join(HALVES[half])}")
    lengths = [300] if options.quick else sorted(set(options.lengths))
    seeds = list(range(1 if options.quick else options.seeds))
    results = Results(options.cache, options.label)
    if not options.only_show:
        results.make(wanted(kinds, seeds, lengths), options.jobs)
    tables = Tables(results, kinds, seeds, lengths)
    for show in (tables.each, tables.finder, tables.autopilot, tables.cost):
        show()
    printed.write(parser, options, *ANCHORS.values(), made=options.cache)


if __name__ == "__main__":
    main()
