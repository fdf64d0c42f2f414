"""Tables of what `DivergenceGuard` does to runs."""

from __future__ import annotations

from results import Table, one, rows, total


def rescued() -> Table:
    everything = one("divergence", "recovery", fault="all")
    dead, rates = rows("zoo_dead", "dead"), rows("divergence", "rates")
    lines: list[list[object]] = [
        ["13 faults in mid-run, seven tasks", everything["stock"], everything["guard"]],
        [
            "a digits CNN at 3 to 100 times its best rate",
            *(total(row[way] for row in dead) for way in ("bare", "guard")),
        ],
        [
            "initial rate 10, 100, 1,000 times too high",
            *(total(row[way] for row in rates) for way in ("stock", "guard")),
        ],
    ]
    return Table(
        ["ended within 10% of the clean run's gain", "without", "with the guard"], lines, ["divergence", "zoo_dead"]
    )


def faults() -> Table:
    lines: list[list[object]] = [
        [row["fault"], row["stock"], row["guard"]] for row in rows("divergence", "recovery") if row["fault"] != "all"
    ]
    return Table(["fault", "without", "with the guard"], lines, ["divergence"])


def touched() -> Table:
    schedules, small = rows("divergence", "quiet"), one("quiet", "quiet", task="all")
    sums = [sum(row[c] for row in schedules) for c in ("runs", "touched", "dropped + held", "limited", "rewinds")]
    lines: list[list[object]] = [
        ["five schedules, seven tasks", *sums, ""],
        ["small nets on digits", small["runs"], small["touched"], small["dropped"] + small["held"], small["limited"],
         small["rewinds"], small["ruined"]],
    ]  # fmt: skip
    columns = ["healthy runs", "runs", "touched", "updates dropped or held", "limited", "rewinds", "ruined"]
    return Table(columns, lines, ["divergence", "quiet"])


def zoo_healthy() -> Table:
    found = one("zoo", "healthy, all")
    columns = ["kinds", "runs", "kinds hurt", "runs with a rewind", "updates dropped or held"]
    wanted = ["kinds", "runs", "hurt", "runs with a rewind", "updates dropped or held"]
    return Table(columns, [[found[name] for name in wanted]], ["zoo"])


def zoo_faults() -> Table:
    wanted = ["fault", "bare", "clip", "guard", "guard worse than bare", "worse than clipping"]
    lines: list[list[object]] = [[row[name] for name in wanted] for row in rows("zoo", "faults")]
    for row in rows("zoo", "rates"):
        lines.append([f"initial rate {row['rate']}", row["bare"], "", row["guard"], "", ""])
    columns = ["fault", "without", "gradient clipped", "with the guard", "worse than without", "worse than clipped"]
    return Table(columns, lines, ["zoo"])


def elsewhere() -> Table:
    here = {
        "dead": [total(row[way] for row in rows("zoo_dead", "dead")) for way in ("bare", "guard")],
        "faults": [one("zoo", "faults", fault="all")[way] for way in ("bare", "guard")],
        "rates": [total(row[way] for row in rows("zoo", "rates")) for way in ("bare", "guard")],
    }
    names = {
        "dead": "a digits CNN at 3 to 100 times its best rate", "faults": "faults, kinds that took no part",
        "rates": "initial rates too high, the same kinds",
    }  # fmt: skip
    lines: list[list[object]] = []
    for row in rows("zoo_elsewhere", "counts"):
        lines.append([names[row["what"]], *here[row["what"]], row["bare"], row["guard"]])
    columns = ["", "without", "with the guard", "without, the other processor", "with the guard, the other"]
    return Table(columns, lines, ["zoo", "zoo_dead", "zoo_elsewhere"])
