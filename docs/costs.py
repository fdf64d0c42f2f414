"""Tables of what the callbacks cost."""

from __future__ import annotations

import re

from found_rates import LENGTHS
from results import Table, one, result, rows

GUARD_PARTS = {
    "tiny (MLP, 4k parameters), one process": "guard_overhead",
    "tiny (MLP, 4k parameters), two processes": "guard_overhead",
    "50 ms and more (MLP, 3.2M parameters), one process": "guard_overhead_large",
}
GUARD_ARMS = {
    "five empty callbacks": "five callbacks that do nothing", "one norm of the gradients": "one norm of the gradients",
    "one sum over the ranks": "one sum over the ranks", "Warmup alone (the ledger)": "`Warmup` (the ledger)",
    "DivergenceGuard": "`DivergenceGuard`", "all five": "all of `autopilot`",
    "SpikeDetection": "Lightning's `SpikeDetection`",
}  # fmt: skip


def update_cost() -> Table:
    kept = {part: {row["arm"]: row for row in rows(file, part)} for part, file in GUARD_PARTS.items()}
    bare = [arms["bare"]["CPU: us" if "two" not in part else "wall: us"] for part, arms in kept.items()]
    lines: list[list[object]] = [["bare `Trainer`", *(f"{us:,} us" for us in bare)]]
    for arm, name in GUARD_ARMS.items():
        cells = []
        for part, arms in kept.items():
            clock = "wall" if "two" in part else "CPU"
            found = arms.get(arm)
            cells.append("" if found is None else f"{found[f'{clock}: more, us']} us ({found[f'{clock}: ratio']})")
        lines.append([name, *cells])
    columns = ["an update", "4,000 parameters", "4,000 parameters, two processes", "3.2 million parameters"]
    return Table(columns, lines, list(dict.fromkeys(GUARD_PARTS.values())))


def monitor_cost() -> Table:
    names = {
        "LearningRateMonitor(step)": "Lightning's `LearningRateMonitor`", "LRMonitor": "`LRMonitor`",
        "Warmup + PlateauDecay + LRMonitor": "`Warmup`, `PlateauDecay`, `LRMonitor`",
    }  # fmt: skip
    parts = [part for part in result("overhead")["tables"] if part.startswith("tiny")]
    kept = [{row["arm"]: row for row in rows("overhead", part)} for part in parts]
    lines: list[list[object]] = [["bare `Trainer`", *(f"{arms['bare']['CPU: us']:,} us" for arms in kept)]]
    for arm, name in names.items():
        lines.append([name, *(f"{arms[arm]['CPU: more, us']} us ({arms[arm]['CPU: ratio']})" for arms in kept)])
    shown = []
    for part in parts:
        schedule, every = re.findall(r"(\w+) schedule, log_every_n_steps=(\d+)", part)[0]
        often = "at every update" if every == "1" else f"every {every}"
        shown.append(f"{schedule} rate, logged {often}")
    return Table(["an update of 4,000 parameters", *shown], lines, ["overhead"])


def sweep_cost() -> Table:
    found = rows("finder_cost", "sweep")
    columns = list(found[0])
    shown = ["model", "plain update, ms", *(f"`{c.split(':')[0]}`: ratio [least, most]" for c in columns[2:])]
    return Table(shown, [[row[column] for column in columns] for row in found], ["finder_cost"])


def run_cost() -> Table:
    lines: list[list[object]] = []
    for length, file in LENGTHS.items():
        for arm, name in {"finder": "`LRFinder`", "autopilot": "`autopilot`"}.items():
            found = one(file, "cost", updates=length, arm=arm)
            taken = f"{found['updates not made (sweeps, guard): mean']}, at most {found['most']}"
            lines.append([f"{length:,}", name, taken, found["CPU time: median"]])
    columns = ["updates", "", "updates that sweeps and trials take", "CPU time, beside a bare run"]
    return Table(columns, lines, ["rates", "rates_3000"])
