"""Tables of the rates that `LRFinder` and `autopilot` find."""

from __future__ import annotations

from results import Row, Table, count, one, rows

LENGTHS = {300: "rates", 1000: "rates", 3000: "rates_3000"}
BOTH = "sgd and adamw"
OPTIMIZERS = {"sgd": "SGD", "adamw": "AdamW", BOTH: "both"}
ARMS = {
    ("autopilot", "adamw"): "**`autopilot`**, AdamW",
    ("schedule-free AdamW, its defaults", "its own, AdamW's grid"): "schedule-free AdamW, its defaults",
    ("Prodigy, its defaults", "its own, AdamW's grid"): "Prodigy, its defaults",
    ("AdamW 1e-3, cosine", "adamw"): "AdamW at 1e-3 with a cosine",
    ("autopilot", "sgd"): "**`autopilot`**, SGD",
    ("SGD 0.1, cosine", "sgd"): "SGD at 0.1 with a cosine",
}


def finder() -> Table:
    lines: list[list[object]] = []
    for length, file in LENGTHS.items():
        for optimizer, name in OPTIMIZERS.items():
            found = one(file, "finder", updates=length, optimizer=optimizer)
            unsure = f"{count(found['above 0.15'])}, of which {count(found['at last'])}"
            cells = [found["cases"], found["mean regret"], found["median"], unsure, found["within 5%"]]
            lines.append([f"{length:,}", name, *cells])
    columns = ["updates", "optimizer", "runs", "mean regret", "median", 'above 0.15, of which "unsure"', "within 5%"]
    return Table(columns, lines, ["rates", "rates_3000"])


def autopilot() -> Table:
    wanted = {
        "mean regret": "mean regret", "median": "median", "final loss / best: median": "ratio: median",
        "within 5%": "within 5%", "within 20%": "within 20%", "above 1.5x": "above 1.5",
    }  # fmt: skip
    lines = []
    for (arm, optimizer), name in ARMS.items():
        found = one("rates", "autopilot", updates=1000, arm=arm, optimizer=optimizer)
        lines.append([name, *(found[column] for column in wanted)])
    return Table(["1,000 updates, 36 runs each", *wanted.values()], lines, ["rates"])


def by_length() -> Table:
    lines = []
    for (arm, optimizer), name in ARMS.items():
        found = [one(f, "autopilot", updates=n, arm=arm, optimizer=optimizer) for n, f in LENGTHS.items()]
        lines.append([name, *(f"{x['final loss / best: median']} ({x['mean regret']})" for x in found)])
    columns = ["ratio: median (mean regret)", *(f"{length:,} updates" for length in LENGTHS)]
    return Table(columns, lines, ["rates", "rates_3000"])


def by_kind() -> Table:
    lines = []
    kinds = list(dict.fromkeys(row["kind"] for row in rows("rates", "autopilot, each")))
    for kind in kinds:
        cells: list[object] = [kind]
        for optimizer in ("sgd", "adamw"):
            found = [
                row
                for row in rows("rates", "autopilot, each")
                if (row["kind"], row["optimizer"], row["updates"]) == (kind, optimizer, 1000)
            ]
            worst = max(float(row["regret"]) for row in found)
            cells += [", ".join(row["ratio"] for row in found), f"{worst:.3f}"]
        lines.append(cells)
    columns = ["kind", "SGD: ratio, by seed", "highest regret", "AdamW: ratio, by seed", "highest regret"]
    return Table(columns, lines, ["rates"])


def rules() -> Table:
    names = {
        "minimum": "`minimum` over ten", "steepest": "`steepest` in log rate", "valley": "`valley`", "slide": "`slide`",
        "lightning": "Lightning's `LearningRateFinder`", "prodigy": "Prodigy, its defaults",
        "schedulefree": "schedule-free AdamW, its defaults", "fixed 1e-3": "a fixed 1e-3",
    }  # fmt: skip
    columns = ["mean", "median", "90% of cases", "<= 0.15", "worst", "picks apart: median, most"]
    best = one("finder_regret", "all tasks", arm="bracket", optimizer=BOTH)
    lines = [["**`bracket`** (the default)", *(best[column] for column in columns)]]
    for arm, name in names.items():
        found = one("finder_regret_rules", "all tasks", arm=arm)
        lines.append([name, *(found[column] for column in columns)])
    shown = [
        "rule",
        "mean regret",
        "median",
        "90% of cases",
        "at most 0.15",
        "worst",
        "picks of the seeds apart: median, most",
    ]
    return Table(shown, lines, ["finder_regret", "finder_regret_rules"])


def robustness() -> Table:
    names = {"digits_cnn": "CNN on digits", "transformer": "byte-level transformer"}
    cases: dict[tuple[str, str], list[Row]] = {}
    for row in rows("robustness", "robustness"):
        cases.setdefault((row["task"], row["optimizer"]), []).append(row)
    lines: list[list[object]] = []
    for (task, optimizer), found in cases.items():
        ratios = [row["autopilot / best"] for row in found]
        near = sum(float(ratio.split(" to ")[-1]) <= 1.05 for ratio in ratios)
        lines.append([names[task], OPTIMIZERS[optimizer], ", ".join(ratios), f"{near}/{len(found)}"])
    columns = ["task", "optimizer", "`autopilot` / best stock loss, by seed", "seeds within 5%"]
    return Table(columns, lines, ["robustness"])
