"""How much a run loses because its rate was found and not known: every rule, on nineteen tasks.

    python benchmarks/finder_regret.py            # resumes where it was stopped
    python benchmarks/finder_regret.py --quick    # four tasks, one seed

Normalised regret: (final held-out loss with the pick - best of the grid) / (loss at the start - best of the grid), at
most 1 (no learning; a divergence and a refusal count as that). The grid has four rates a decade, constant rate, 300
updates; a sweep's updates count among the 300. `lightning` is the real `LearningRateFinder` with `num_training=60`,
`prodigy` and `schedulefree` (AdamW) run at their defaults and are compared with AdamW's grid.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import printed
import torch
from finder_tasks import GRID, HELD_OUT, OPTIMIZERS, TASKS, UPDATES, PlainRun
from printed import head, row
from torch import nn

from lightning_lr import SweepPolicy
from lightning_lr.policies.curve_rules import RULES
from lightning_lr.policies.horizon import POWERS, Horizon
from lightning_lr.policies.sweep import BRACKET

SWEEP = 60
ARMS = ("bracket", *RULES, "lightning", "prodigy", "schedulefree", "fixed 1e-3")


def trained(run: PlainRun, rate: float | None, updates: int) -> float:
    """The held-out loss after so many updates; infinite for a divergence."""
    for _ in range(updates):
        loss = run.update(rate)
        if not abs(loss) < 1e7:
            return math.inf
    return run.held_out_loss()


def grid(task: str, optimizer: str, seed: int) -> dict[str, Any]:
    start = PlainRun(task, optimizer, seed).held_out_loss()
    return {
        "start": start,
        "final": [trained(PlainRun(task, optimizer, seed), rate, UPDATES) for rate in GRID[optimizer]],
    }


def swept(rule: str, task: str, optimizer: str, seed: int) -> tuple[float | None, float]:
    """The pick of one of our rules, and the final loss.

    As in a run, an update on a kept batch uses up one of the run's own, and has the random numbers of the first time.
    """
    policy, run = SweepPolicy(steps=SWEEP, suggest=rule), PlainRun(task, optimizer, seed)
    healthy, random, made = run.keep(), torch.get_rng_state(), 0
    kept: dict[int, tuple[Any, torch.Tensor]] = {}
    if rule == BRACKET:
        # the batch that had come before there was anybody to keep it
        run.batch()
        made = 1
    kind = "sgd" if optimizer == "sgd" else "adaptive"
    state, now = policy.start(horizon=Horizon(UPDATES, POWERS["stays"][kind]))
    while now.rate is not None:
        if now.restore:
            run.restore(healthy)
        batch = run.batch()
        if now.batch is not None:
            batch, same = kept.setdefault(now.batch, (batch, torch.get_rng_state()))
            torch.set_rng_state(same)
        state, now = policy.step(state, run.update(now.rate, batch))
        made += 1
    run.restore(healthy)
    torch.set_rng_state(random)
    assert now.suggestion is not None
    pick = now.suggestion.rate
    return pick, math.inf if pick is None else trained(run, pick, UPDATES - made)


def lightning_finder(task: str, optimizer: str, seed: int) -> tuple[float | None, float]:
    import pytorch_lightning as pl
    from pytorch_lightning.tuner import Tuner

    run = PlainRun(task, optimizer, seed)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            while True:
                yield run.batch()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.lr = run.net, 1e-3

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return run.task.loss(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            for group in run.optimizer.param_groups:
                group["lr"] = self.lr
            return run.optimizer

        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Stream(), batch_size=None)

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        trainer = pl.Trainer(max_steps=UPDATES, accelerator="cpu", logger=False, default_root_dir=folder, **silent)
        found = Tuner(trainer).lr_find(Module(), num_training=SWEEP, update_attr=False)
    pick = None if found is None else found.suggestion()
    # the finder has put the weights back, but its fit loop has been through the optimizer
    fresh = PlainRun(task, optimizer, seed)
    for _ in range(SWEEP):
        fresh.batch()
    return pick, math.inf if pick is None else trained(fresh, pick, UPDATES - SWEEP)


def prodigy(task: str, seed: int) -> float:
    from prodigyopt import Prodigy

    run = PlainRun(task, "adamw", seed)
    run.optimizer = Prodigy(run.parameters)
    return trained(run, None, UPDATES)


def schedule_free(task: str, seed: int) -> float:
    from schedulefree import AdamWScheduleFree

    run = PlainRun(task, "adamw", seed)
    run.optimizer = AdamWScheduleFree(run.parameters)
    run.optimizer.train()
    if not math.isfinite(trained(run, None, UPDATES)):
        return math.inf
    run.optimizer.eval()
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in run.net.modules()):
        with torch.no_grad():
            for _ in range(50):
                run.net(run.batch()[0])
    return run.held_out_loss()


def measure(arm: str, task: str, optimizer: str, seed: int) -> dict[str, Any]:
    pick = None
    if arm == "lightning":
        pick, final = lightning_finder(task, optimizer, seed)
    elif arm == "prodigy":
        final = prodigy(task, seed)
    elif arm == "schedulefree":
        final = schedule_free(task, seed)
    elif arm == "fixed 1e-3":
        pick, final = 1e-3, trained(PlainRun(task, optimizer, seed), 1e-3, UPDATES)
    else:
        pick, final = swept(arm, task, optimizer, seed)
    return {"pick": pick, "final": final}


def regret(grid: dict[str, Any], final: float) -> float:
    best = min(final for final in grid["final"] if math.isfinite(final))
    return min(1.0, (final - best) / (grid["start"] - best)) if math.isfinite(final) else 1.0


def figures(arm: str, kept: dict[str, Any], tasks: Any, optimizers: Any, seeds: Any) -> dict[str, Any]:
    cases, spreads = [], []
    for task in tasks:
        for optimizer in optimizers:
            picks = []
            for seed in seeds:
                key = f"{task}|{optimizer}|{seed}"
                if f"{arm}|{key}" in kept and f"grid|{key}" in kept:
                    cases.append(regret(kept[f"grid|{key}"], kept[f"{arm}|{key}"]["final"]))
                    picks.append(kept[f"{arm}|{key}"]["pick"])
            if len(picks) > 1 and all(picks):
                spreads.append(max(picks) / min(picks))
    cases.sort()
    spreads.sort()
    if not cases:
        return {}
    return {
        "cases": len(cases),
        "mean": sum(cases) / len(cases),
        "median": cases[len(cases) // 2],
        "p90": cases[min(len(cases) - 1, math.ceil(0.9 * len(cases)) - 1)],
        "within": sum(case <= 0.15 for case in cases) / len(cases),
        "worst": cases[-1],
        "spread": spreads[len(spreads) // 2] if spreads else math.nan,
        "widest": spreads[-1] if spreads else math.nan,
    }


def show(kept: dict[str, Any], tasks: list[str], seeds: list[int], title: str) -> None:
    head(
        title, f"**{title}**", "arm", "optimizer", "cases", "mean", "median", "90% of cases", "<= 0.15", "worst",
        "picks apart: median, most",
    )  # fmt: skip
    for arm in ARMS:
        alone = arm in ("prodigy", "schedulefree")
        for optimizers in [("adamw",)] if alone else [("sgd",), ("adamw",), OPTIMIZERS]:
            r = figures(arm, kept, tasks, optimizers, seeds)
            if r:
                apart = "-" if math.isnan(r["spread"]) else f"{r['spread']:.2g}x, {r['widest']:.2g}x"
                names = "its own" if alone else " and ".join(optimizers)
                row(
                    arm, names, r["cases"], f"{r['mean']:.3f}", f"{r['median']:.3f}", f"{r['p90']:.3f}",
                    f"{r['within']:.0%}", f"{r['worst']:.2f}", apart,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four tasks, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--cache", type=Path, default=Path("finder_regret.json"), help="kept after every case")
    parser.add_argument("--only-show", action="store_true")
    printed.add_argument(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    import logging

    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tasks = ["digits_mlp", "digits_cnn_bn", "friedman", "raw_digits"] if options.quick else list(TASKS)
    seeds = list(range(1 if options.quick else options.seeds))
    kept = json.loads(options.cache.read_text()) if options.cache.exists() else {}

    def keep(key: str, value: Any) -> None:
        kept[key] = value
        waiting = options.cache.with_suffix(".part")
        waiting.write_text(json.dumps(kept))
        os.replace(waiting, options.cache)

    for seed in [] if options.only_show else seeds:
        for task in tasks:
            for optimizer in OPTIMIZERS:
                key = f"{task}|{optimizer}|{seed}"
                if f"grid|{key}" not in kept:
                    keep(f"grid|{key}", grid(task, optimizer, seed))
                for arm in options.arms:
                    if optimizer == "sgd" and arm in ("prodigy", "schedulefree"):
                        continue
                    if f"{arm}|{key}" not in kept:
                        keep(f"{arm}|{key}", measure(arm, task, optimizer, seed))
                case = kept.get(f"bracket|{key}")
                if case is not None:
                    print(
                        f"{key}: regret {regret(kept[f'grid|{key}'], case['final']):.3f}, pick {case['pick']}",
                        flush=True,
                    )
    show(kept, [task for task in tasks if task not in HELD_OUT], seeds, "tasks that the rule was designed on")
    show(kept, [task for task in tasks if task in HELD_OUT], seeds, "held-out tasks")
    show(kept, tasks, seeds, "all tasks")
    printed.write(parser, options, "prodigyopt", "schedulefree", made=options.cache)


if __name__ == "__main__":
    main()
