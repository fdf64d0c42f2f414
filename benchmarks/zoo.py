"""What `DivergenceGuard` does to thirty kinds of training that are unlike each other: the zoo.

Half of the kinds (`tune`) may be looked at while thresholds are set; the other half (`report`) may not. Four tables:
*healthy* (nothing is wrong: whom does the guard hurt?), *faults* (thirteen faults in mid-run, against a bare run and
one with its gradient clipped at twice the healthy run's median norm), *rates* (initial rates 10, 100 and 1,000 times
too high) and *dead* (a digits CNN at rates that may kill it). A run has recovered when it ended without raising and its
held-out score is within 10% of the clean run's gain from the clean run's; the clean run is the bare one without fault
from the same seed.

    python benchmarks/zoo.py results.jsonl                       # everything; goes on where it was stopped
    python benchmarks/zoo.py results.jsonl --half tune --tables healthy faults --jobs 2
    python benchmarks/zoo.py results.jsonl --label new           # other numbers for the guard, the same for the rest
    python benchmarks/zoo.py --tune --half tune                  # final scores over half decades of rates
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import printed
import pytorch_lightning as pl
import torch
import zoo_a
import zoo_b
from divergence import cnn, digits
from printed import head, row
from torch import Tensor
from torch.nn import functional
from zoo_base import FAULTS, Kind, first_optimizer

from lightning_lr.callbacks.divergence import DivergenceGuard

HEALTHY_SEEDS, FAULT_SEEDS, TUNING_SEEDS = [0, 1, 2], [3], [10, 11]
WAYS = ["bare", "clip", "guard"]
RATES = [10.0, 100.0, 1000.0]
DEADLY = [3.0, 10.0, 30.0, 100.0]


class DigitsNet(Kind):
    """A small convolutional net, with SGD."""

    rate = 0.03

    def build(self) -> None:
        self.net = cnn()

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)

    def draw(self, k: int, random: torch.Generator) -> Any:
        x, y, *_ = digits()
        chosen = torch.randint(len(x), (32,), generator=random)
        return x[chosen], y[chosen]

    def loss(self, batch: Any, k: int) -> Tensor:
        return functional.cross_entropy(self.net(batch[0]), batch[1])

    def score(self) -> float:
        *_, x, y = digits()
        return float(functional.cross_entropy(self.net(x), y))


class DigitsAdamW(DigitsNet):
    """The same with AdamW."""

    rate = 3e-3

    def optimizer(self, rate: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=rate)


HALVES: dict[str, dict[str, type[Kind]]] = {"tune": zoo_a.KINDS, "report": zoo_b.KINDS}
NETS: dict[str, type[Kind]] = {"digits, SGD": DigitsNet, "digits, AdamW": DigitsAdamW}
ALL: dict[str, type[Kind]] = {**HALVES["tune"], **HALVES["report"], **NETS}


class Job(NamedTuple):
    """One run. `way` is one of `WAYS`, or "norm": a bare run that gives the median norm of its gradients."""

    way: str
    kind: str
    seed: int
    fault: str | None = None
    times: float = 1.0

    def key(self, label: str) -> str:
        kind = ALL[self.kind]
        return json.dumps([*self, kind.rate, kind.updates, *([label] if self.way == "guard" else [])])


@functools.cache
def clippable(kind: str) -> bool:
    """Whether the Trainer can clip it: it can't where the optimization is manual."""
    return ALL[kind]().automatic_optimization


@functools.cache
def felt(kind: str, seed: int) -> list[str]:
    """The faults that change anything for a kind."""
    return [fault for fault in FAULTS if ALL[kind](seed=seed, fault=fault).felt()]


class Norms(pl.Callback):
    """Collects the norms of the gradients."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        grads = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norms.append(float(torch.stack(grads).norm()))


def quiet() -> None:
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_utilities.core.rank_zero", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)


def trainer_with(callbacks: list[pl.Callback], clip: float | None = None) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, gradient_clip_val=clip,
    )  # fmt: skip


def run(task: tuple[Job, float | None]) -> tuple[Job, dict[str, Any]]:
    """The outcome of a job; `clip` is the norm to clip at, for runs that clip."""
    job, clip = task
    quiet()
    model = ALL[job.kind](seed=job.seed, fault=job.fault, times=job.times)
    guard, norms = DivergenceGuard(snapshot_every=10), Norms()
    callbacks: dict[str, list[pl.Callback]] = {"guard": [guard], "norm": [norms]}
    trainer = trainer_with(callbacks.get(job.way, []), clip)
    start, raised, began = model.held_out(), None, time.perf_counter()
    try:
        trainer.fit(model)
    except Exception as error:  # what a run died of is a result, too
        raised = f"{type(error).__name__}: {error}"[:300]
    found = {"start": start, "end": model.held_out(), "raised": raised, "updates": model.length}
    found["seconds"] = round(time.perf_counter() - began, 2)
    if job.way == "norm":
        found["norm"] = statistics.median(x for x in norms.norms if math.isfinite(x))
    if job.way == "guard":
        found["guard"] = guard.summary()
    return job, found


class Results:
    """Outcomes by job, kept in a file of one JSON object a line."""

    def __init__(self, path: Path, label: str, jobs: int) -> None:
        self.path, self.label, self.jobs = path, label, jobs
        lines = path.read_text().splitlines() if path.exists() else []
        self.known: dict[str, dict[str, Any]] = {line["key"]: line for line in map(json.loads, lines)}

    def get(self, job: Job) -> dict[str, Any]:
        return self.known[job.key(self.label)]

    def make(self, jobs: Iterable[Job]) -> None:
        """Runs what isn't known yet; norms first, as clipping needs them."""
        jobs = list(jobs)
        norms = [self.norm(job.kind) for job in jobs if job.way == "clip"]
        self.make_all([(job, None) for job in norms])
        clips = [2 * self.get(self.norm(job.kind))["norm"] if job.way == "clip" else None for job in jobs]
        self.make_all(list(zip(jobs, clips, strict=True)))

    @staticmethod
    def norm(kind: str) -> Job:
        return Job("norm", kind, 0)

    def make_all(self, tasks: list[tuple[Job, float | None]]) -> None:
        missing = list({t[0].key(self.label): t for t in tasks if t[0].key(self.label) not in self.known}.values())
        if self.jobs > 1 and len(missing) > 1:
            with multiprocessing.get_context("spawn").Pool(self.jobs) as pool:
                for found in pool.imap_unordered(run, missing):
                    self.keep(*found)
        else:
            for task in missing:
                self.keep(*run(task))

    def keep(self, job: Job, found: dict[str, Any]) -> None:
        line = self.known[job.key(self.label)] = {"key": job.key(self.label), **found}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def gain(self, kind: str, seed: int) -> float:
        clean = self.get(Job("bare", kind, seed))
        return clean["start"] - clean["end"]

    def share(self, job: Job) -> float:
        """What is missing to the clean run's score, as a share of that run's gain."""
        clean, gain = self.get(Job("bare", job.kind, job.seed)), self.gain(job.kind, job.seed)
        share = (self.get(job)["end"] - clean["end"]) / gain if gain > 0 else math.inf
        return share if math.isfinite(share) else math.inf

    def recovered(self, job: Job) -> bool:
        return self.get(job)["raised"] is None and self.share(job) <= 0.1

    def worse(self, job: Job, other: Job) -> bool:
        return self.share(job) > self.share(other) + 0.03


def did(found: dict[str, Any], *names: str) -> int:
    return int(sum(found["guard"].get(name, 0) for name in names))


def healthy(results: Results, kinds: list[str], seeds: list[int], ways: list[str], verbose: bool) -> None:
    results.make(Job(way, kind, seed) for kind in kinds for seed in seeds for way in ways if way != "clip")
    if "guard" not in ways or "bare" not in ways:
        return
    trials = ["trials_passed", "trials_data", "trials_weights"]
    head(
        "healthy", "Healthy runs", "kind", "start", "bare", "guard", "spread", "hurt", "dropped + held", "limited",
        "trials: passed, data, weights", "rewinds", "raised",
    )  # fmt: skip
    everything, hurt = [], []
    for kind in kinds:
        bare, guarded = ([results.get(Job(way, kind, seed)) for seed in seeds] for way in ("bare", "guard"))
        a, b = (statistics.fmean(r["end"] for r in runs) for runs in (bare, guarded))
        spread = max(r["end"] for r in bare) - min(r["end"] for r in bare)
        if not b <= a + spread:
            hurt.append(kind)
        everything += guarded
        tried = ", ".join(str(sum(did(r, name) for r in guarded)) for name in trials)
        row(
            kind, f"{bare[0]['start']:.3g}", f"{a:.4g}", f"{b:.4g}", f"{spread:.2g}", "hurt" if kind in hurt else "",
            sum(did(r, "dropped", "held") for r in guarded), sum(did(r, "limited") for r in guarded), tried,
            sum(did(r, "rewinds") for r in guarded), sum(r["raised"] is not None for r in guarded),
        )  # fmt: skip
    gone = sum(did(r, "dropped", "held") for r in everything) / sum(r["updates"] for r in everything)
    rewound = sum(did(r, "rewinds") > 0 for r in everything)
    print(f"\nUpdates dropped or held: {gone:.3%}. Runs with a rewind: {rewound} of {len(everything)}. ", end="")
    print(f"Kinds hurt: {len(hurt)} of {len(kinds)}.", flush=True)
    summed = ["runs", "updates dropped or held", "runs with a rewind", "kinds", "hurt"]
    printed.keep("healthy, all", summed, [[len(everything), f"{gone:.3%}", rewound, len(kinds), len(hurt)]])
    for kind in kinds if verbose else []:
        for seed in seeds:
            found = results.get(Job("guard", kind, seed))
            if did(found, "dropped", "held", "limited", "rewinds") or found["raised"]:
                end = results.get(Job("bare", kind, seed))["end"]
                print(
                    f"  {kind}, seed {seed}: {end:.4g} -> {found['end']:.4g} {found['guard']} {found['raised'] or ''}"
                )


def faults(results: Results, kinds: list[str], seeds: list[int], ways: list[str], verbose: bool) -> None:
    cases = [(kind, seed, fault) for kind in kinds for seed in seeds for fault in felt(kind, seed)]
    clean = [Job("bare", kind, seed) for kind in kinds for seed in seeds]
    results.make([*clean, *(Job(w, *case) for case in cases for w in ways if w != "clip" or clippable(case[0]))])
    head(
        "faults", "Faults: runs that recovered",
        "fault", *ways, "guard worse than bare", "worse than clipping", "guard raised",
        "raised, bare survived",
    )  # fmt: skip
    lines = []
    for fault in [*FAULTS, None]:
        here = [case for case in cases if fault in (case[2], None)]
        cells = []
        for way in ways:
            runs = [Job(way, *case) for case in here if way != "clip" or clippable(case[0])]
            cells.append(f"{sum(map(results.recovered, runs))}/{len(runs)}")
        counts: list[object] = ["", "", "", ""]
        if "guard" in ways:
            guarded = [Job("guard", *case) for case in here]
            for place, other in enumerate(["bare", "clip"]):
                if other in ways:
                    pairs = [g for g in guarded if other == "bare" or clippable(g.kind)]
                    counts[place] = sum(results.worse(g, g._replace(way=other)) for g in pairs)
            raised = [g for g in guarded if results.get(g)["raised"]]
            counts[2] = len(raised)
            if "bare" in ways:
                bare = [results.get(g._replace(way="bare")) for g in raised]
                counts[3] = sum(r["raised"] is None and math.isfinite(r["end"]) for r in bare)
            failed = [g for g in guarded if not results.recovered(g)]
            worse = [g for o in ("bare", "clip") if o in ways for g in guarded
                     if (o == "bare" or clippable(g.kind)) and results.worse(g, g._replace(way=o))]  # fmt: skip
            lines += [g for g in dict.fromkeys([*failed, *worse]) if fault is not None]
        row(fault or "all", *cells, *counts)
    if verbose and lines:
        print("\nThe guard's failures, and where it is worse than another way (share of the gain that is missing):\n")
        for job in lines:
            shares = []
            for way in ways:
                if way != "clip" or clippable(job.kind):
                    shares.append(f"{way} {results.share(job._replace(way=way)):.3g}")
            found = results.get(job)
            print(f"  {job.fault} / {job.kind}, seed {job.seed}: {', '.join(shares)} {found['guard']} ", end="")
            print(found["raised"] or "")


def too_high(
    name: str, title: str, multiples: list[float], results: Results, kinds: list[str], seeds: list[int],
    ways: list[str], verbose: bool, each: bool = False,
) -> None:  # fmt: skip
    ways = [way for way in ways if way != "clip"]
    pairs = [(kind, seed) for kind in kinds for seed in seeds]
    runs = [Job(way, k, s, None, times) for way in ways for k, s in pairs for times in multiples]
    results.make([*(Job("bare", k, s) for k, s in pairs), *runs])
    head(name, title, *(["kind"] if each else []), "rate", *ways, "guard raised")
    for group in [[kind] for kind in kinds] if each else [kinds]:
        for times in multiples:
            here = [job for job in runs if job.kind in group and job.times == times]
            columns = [[job for job in here if job.way == way] for way in ways]
            cells = [f"{sum(map(results.recovered, column))}/{len(column)}" for column in columns]
            raised = sum(job.way == "guard" and results.get(job)["raised"] is not None for job in here)
            row(*(group if each else []), f"x{times:g}", *cells, raised)
    for job in runs if verbose else []:
        if job.way == "guard" and not results.recovered(job):
            bare = f"bare {results.share(job._replace(way='bare')):.3g}, " if "bare" in ways else ""
            found = results.get(job)
            print(f"  x{job.times:g} / {job.kind}, seed {job.seed}: {bare}guard {results.share(job):.3g} ", end="")
            print(found["guard"], found["raised"] or "")


def plain(kind: str, seed: int, times: float) -> tuple[float, float]:
    """First and last score of a loop without Lightning (with it, where there are schedulers, or several optimizers)."""
    model = ALL[kind](seed=seed, times=times)
    start = model.held_out()
    optimizer = model.configure_optimizers()
    if not model.automatic_optimization or not isinstance(optimizer, torch.optim.Optimizer):
        trainer_with([]).fit(model)
        return start, model.held_out()
    for k in range(model.length):
        batch = model.get(k)
        model.before_batch(k, optimizer)
        optimizer.zero_grad()
        model.loss(batch, k).backward()
        optimizer.step()
        model.after(k)
    return start, model.held_out()


def tune(kinds: list[str]) -> None:
    """Final scores at half decades around each kind's rate, and the lowest one within 1% of the best one's gain."""
    head(
        "scores", "Mean final score by rate", "kind", "optimizer", "present", "best", "start", "scores", "seconds a run"
    )
    for kind in kinds:
        middle = round(2 * math.log10(ALL[kind].rate))
        grid = [float(f"{10 ** (k / 2):.0e}") for k in range(middle - 3, middle + 4)]
        scores, start, began = {}, 0.0, time.perf_counter()
        for rate in grid:
            runs = [plain(kind, seed, rate / ALL[kind].rate) for seed in TUNING_SEEDS]
            start, scores[rate] = runs[0][0], statistics.fmean(end for _, end in runs)
        seconds = (time.perf_counter() - began) / len(grid) / len(TUNING_SEEDS)
        first = first_optimizer(ALL[kind]().configure_optimizers())
        listed = ", ".join(f"{rate:g}: {score:.4g}" for rate, score in scores.items())
        bound = min(scores.values()) + 0.01 * (start - min(scores.values()))
        best = min(rate for rate in grid if scores[rate] <= bound)
        row(kind, type(first).__name__, f"{ALL[kind].rate:g}", f"{best:g}", f"{start:.4g}", listed, f"{seconds:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="file of outcomes, made or gone on with")
    parser.add_argument("--half", choices=list(HALVES), help="of the kinds; left out: both")
    parser.add_argument("--tables", nargs="+", default=["healthy", "faults", "rates", "dead"],
                        choices=["healthy", "faults", "rates", "dead"])  # fmt: skip
    parser.add_argument("--kinds", nargs="+", choices=list(ALL), metavar="KIND", help=", ".join(ALL))
    parser.add_argument("--seeds", type=int, nargs="+", help="left out: 0 1 2 for healthy and dead, 3 for the others")
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS, help="what to run; left out: all three")
    parser.add_argument("--label", default="", help="of this version of the guard, in the file of outcomes")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--verbose", action="store_true", help="also list the failures one by one")
    parser.add_argument("--quick", action="store_true", help="one seed of the first two kinds, a fault table of these")
    parser.add_argument("--tune", action="store_true", help="only print final scores by rate")
    printed.add_argument(parser)
    args = parser.parse_args()
    quiet()
    kinds: list[str] = args.kinds or [k for half in ([args.half] if args.half else HALVES) for k in HALVES[half]]
    if args.tune:
        return tune(kinds if args.kinds else [*kinds, *NETS])
    if args.results is None:
        parser.error("results is needed")
    if args.quick:
        kinds, args.seeds = kinds[:2], args.seeds or [3]
    results, ways = Results(args.results, args.label, args.jobs), [way for way in WAYS if way in args.ways]
    usual, few = args.seeds or HEALTHY_SEEDS, args.seeds or FAULT_SEEDS
    if "healthy" in args.tables:
        healthy(results, kinds, usual, ways, args.verbose)
    if "faults" in args.tables:
        faults(results, kinds, few, ways, args.verbose)
    if "rates" in args.tables:
        title = "Rates: runs within 10% of the tuned run's gain"
        too_high("rates", title, RATES, results, kinds, few, ways, args.verbose)
    if "dead" in args.tables:
        nets = [kind for kind in NETS if not args.kinds or kind in args.kinds] or list(NETS)
        title = "Dead nets: runs within 10% of the tuned run's gain"
        too_high("dead", title, DEADLY, results, nets, usual, ways, args.verbose, each=True)
    printed.write(parser, args, made=args.results)
    return None


if __name__ == "__main__":
    main()
