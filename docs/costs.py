"""Tables of what the callbacks cost."""

from __future__ import annotations

import re

from found_rates import LENGTHS
from results import Table, exists, one, result, rows

GUARD_FILES = ["guard_overhead", "guard_overhead_two", "guard_overhead_large"]
"""The last two have what the first one lacks."""

LEAST = "CPU, fastest tenth"
"""The clock that other work on the machine disturbs the least."""

GUARD_PARTS = {
    "tiny (MLP, 4k parameters), one process": LEAST,
    "tiny (MLP, 4k parameters), two processes": "wall",
    "50 ms and more (MLP, 3.2M parameters), one process": LEAST,
}
"""And the clock: where processes wait for one another only that on the wall tells."""

GUARD_ARMS = {
    "five empty callbacks": "five callbacks that do nothing", "one norm of the gradients": "one norm of the gradients",
    "one sum over the ranks": "one sum over the ranks", "Warmup alone (the ledger)": "`Warmup` (the ledger)",
    "DivergenceGuard": "`DivergenceGuard`", "all five": "all of `autopilot`",
    "SpikeDetection": "Lightning's `SpikeDetection`",
}  # fmt: skip


def file_of(part: str) -> str:
    return next(file for file in GUARD_FILES if exists(file) and part in result(file)["tables"])


def update_cost() -> Table:
    kept = {part: {row["arm"]: row for row in rows(file_of(part), part)} for part in GUARD_PARTS}
    bare = [f"{kept[part]['bare'][f'{clock}: us']:,} us" for part, clock in GUARD_PARTS.items()]
    lines: list[list[object]] = [["bare `Trainer`", *bare]]
    for arm, name in GUARD_ARMS.items():
        cells = []
        for part, clock in GUARD_PARTS.items():
            found = kept[part].get(arm, {})
            more, ratio = (found.get(f"{clock}: {what}", "") for what in ("more, us", "ratio"))
            cells.append(f"{more} us ({ratio})" if more else f"({ratio})" if ratio else "")
        lines.append([name, *cells])
    columns = ["an update", "4,000 parameters", "4,000 parameters, two processes", "3.2 million parameters"]
    return Table(columns, lines, list(dict.fromkeys(map(file_of, GUARD_PARTS))))


def monitor_cost() -> Table:
    names = {
        "LearningRateMonitor(step)": "Lightning's `LearningRateMonitor`", "LRMonitor": "`LRMonitor`",
        "Warmup + PlateauDecay + LRMonitor": "`Warmup`, `PlateauDecay`, `LRMonitor`",
    }  # fmt: skip
    parts = [part for part in result("overhead")["tables"] if part.startswith("tiny")]
    kept = [{row["arm"]: row for row in rows("overhead", part)} for part in parts]
    lines: list[list[object]] = [["bare `Trainer`", *(f"{arms['bare'][f'{LEAST}: us']:,} us" for arms in kept)]]
    for arm, name in names.items():
        lines.append(
            [name, *(f"{arms[arm][f'{LEAST}: more, us']} us ({arms[arm][f'{LEAST}: ratio']})" for arms in kept)]
        )
    shown = []
    for part in parts:
        schedule, every = re.findall(r"(\w+) schedule, log_every_n_steps=(\d+)", part)[0]
        often = "at every update" if every == "1" else f"every {every}"
        shown.append(f"{schedule} rate, logged {often}")
    return Table(["an update of 4,000 parameters", *shown], lines, ["overhead"])


def run_cost() -> Table:
    lines: list[list[object]] = []
    for length, file in LENGTHS.items():
        for arm, name in {"finder": "`LRFinder`", "autopilot": "`autopilot`"}.items():
            found = one(file, "cost", updates=length, arm=arm)
            taken = f"{found['updates not made (sweeps, guard): mean']}, at most {found['most']}"
            lines.append([f"{length:,}", name, taken, found["CPU time: median"]])
    columns = ["updates", "", "updates that sweeps and trials take", "processor's time, beside a bare run"]
    return Table(columns, lines, ["rates", "rates_3000"])
