"""The tables in the manual, made from what the benchmarks have written to `benchmarks/results`.

    python docs/tables.py            # writes each between `<!-- table: NAME -->` and `<!-- end -->`
    python docs/tables.py --check    # writes nothing; fails where a page differs from the results

The pages are README.md and docs/**/*.md. The cells are those that the benchmarks printed (`benchmarks/printed.py`);
here they are chosen, named and put together.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import costs
import found_rates
import guarded
from results import EARLIER, RESULTS, ROOT, Table, count, one, result, rows, total

MARKED = re.compile(r"(?P<head><!-- table: (?P<name>[\w-]+) -->\n)(?P<table>.*?)(?P<end><!-- end -->)", re.DOTALL)


def figures() -> Table:
    ways = "stock", "guard"
    everything, fair = one("divergence", "recovery", fault="all"), one("zoo", "faults", fault="all")
    rates = [total(row[way] for row in rows("divergence", "rates")) for way in ways]
    sgd = [
        one("rates", "autopilot", updates=1000, arm=arm, optimizer="sgd") for arm in ("SGD 0.1, cosine", "autopilot")
    ]
    pilot = one("rates", "autopilot", updates=1000, arm="autopilot", optimizer="adamw")
    fixed = one("rates", "autopilot", updates=1000, arm="AdamW 1e-3, cosine", optimizer="adamw")
    ratio, near = "final loss / best: median", "within 5%"
    healthy = one("zoo", "healthy, all")
    large = list(costs.GUARD_PARTS)[-1]
    cost = {row["arm"]: row for row in rows(costs.file_of(large), large)}
    finals = [
        f"{found[ratio]} times in the median, {count(found[near])} of {found['cases']} within 5%"
        for found in (fixed, pilot, *sgd)
    ]
    lines: list[list[object]] = [
        ["`DivergenceGuard`: runs with a fault that end well, tasks that took part in tuning",
         *(everything[way] for way in ways)],
        ["the same, kinds of training that took no part", fair["bare"], fair["guard"]],
        ["runs at 10, 100 and 1,000 times their rate that end well", *rates],
        ["kinds of healthy training that it hurts", "-", f"{healthy['hurt']} of {healthy['kinds']}"],
        ["`autopilot`: final loss beside the best rate of a grid, AdamW (without: 1e-3 and a cosine)", *finals[:2]],
        ["the same, SGD (without: 0.1 and a cosine)", *finals[2:]],
        ["an update of 3.2 million parameters with `DivergenceGuard`",
         f"{cost['bare'][f'{costs.LEAST}: us'] / 1000:.0f} ms",
         f"{cost['DivergenceGuard'][f'{costs.LEAST}: ratio']} times that"],
    ]  # fmt: skip
    return Table(["", "without", "with"], lines, [])


def sources() -> Table:
    lines: list[list[object]] = []
    for path in sorted(RESULTS.glob("*.json")):
        found = result(path.stem)
        versions = found.get("versions", {})
        said = ", ".join(
            f"{name} {number}" for name, number in versions.items() if name in ("python", "torch", "pytorch-lightning")
        )
        cores = f", {found['cores']} cores" if "cores" in found else ""
        what = f"`{found['benchmark']} {found['arguments']}".rstrip() + "`"
        lines.append(
            [
                f"`{path.name}`",
                what,
                found.get("date", ""),
                said or f"{EARLIER}, `constraints.txt`",
                found.get("processor", "") + cores,
            ]
        )
    return Table(["result", "printed by", "date", "versions", "processor"], lines, [])


TABLES: dict[str, Callable[[], Table]] = {
    "finder": found_rates.finder, "autopilot": found_rates.autopilot, "by-length": found_rates.by_length,
    "by-kind": found_rates.by_kind, "rules": found_rates.rules, "robustness": found_rates.robustness,
    "rescued": guarded.rescued, "faults": guarded.faults, "touched": guarded.touched,
    "zoo-healthy": guarded.zoo_healthy, "zoo-faults": guarded.zoo_faults, "elsewhere": guarded.elsewhere,
    "update-cost": costs.update_cost, "monitor-cost": costs.monitor_cost, "run-cost": costs.run_cost,
    "figures": figures, "sources": sources,
}  # fmt: skip


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def made(page: str) -> str:
    """The page with its tables as the results have them."""

    def table(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise ValueError(f"there is no table {match['name']!r}: there are {', '.join(TABLES)}")
        return match["head"] + TABLES[match["name"]]().text() + match["end"]

    return MARKED.sub(table, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a page differs from the results")
    args = parser.parse_args()
    stale = [page for page in pages() if made(page.read_text()) != page.read_text()]
    if args.check and stale:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"not as benchmarks/results has it: {names}. python docs/tables.py")
    for page in stale:
        page.write_text(made(page.read_text()))


if __name__ == "__main__":
    main()
