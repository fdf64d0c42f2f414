"""Draws the rooms of the package and their imports: `python docs/rooms.py [PACKAGE] [FIGURE]`.

A room is a folder, or a file beside them. It stands above all rooms that it imports. A circle is drawn in red.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

HOME = Path(__file__).resolve().parent


def imports(package: Path) -> Counter[tuple[str, str]]:
    """How many imports lead from one room to another, those for types alone left out."""
    found: Counter[tuple[str, str]] = Counter()
    name = package.name
    paths = [path for path in package.rglob("*.py") if path.parent != package or not path.stem.startswith("__")]
    rooms = {path.relative_to(package).parts[0].removesuffix(".py") for path in paths}
    for path in paths:
        here = path.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if modules == [name] and isinstance(node, ast.ImportFrom):
                modules = [f"{name}.{alias.name}" for alias in node.names]
            for module in modules:
                parts = module.split(".")
                if parts[0] == name and len(parts) > 1 and parts[1] in rooms and parts[1] != here:
                    found[here, parts[1]] += 1
    return found


def floors(arrows: set[tuple[str, str]]) -> dict[str, int]:
    """The floor of each room: one above the highest that it imports; rooms in a circle share theirs."""
    rooms = {room for arrow in arrows for room in arrow}
    floor = dict.fromkeys(rooms, 0)
    for _ in range(len(rooms)):
        for above, below in sorted(arrows):
            circle = reaches(arrows, below, above)
            floor[above] = max(floor[above], floor[below] + (not circle))
    return floor


def reaches(arrows: set[tuple[str, str]], start: str, end: str) -> bool:
    """Is there a way along the arrows?"""
    seen, ahead = {start}, [start]
    while ahead:
        here = ahead.pop()
        new = {to for source, to in arrows if source == here} - seen
        seen |= new
        ahead += new
    return end in seen


def draw(package: Path, figure: Path) -> None:
    """Writes the picture."""
    from matplotlib.figure import Figure

    counts = imports(package)
    floor = floors(set(counts))
    levels = [sorted(room for room in floor if floor[room] == level) for level in range(max(floor.values()) + 1)]
    width = max(map(len, levels))
    place = {
        room: ((index + 0.5) * width / len(level), float(height))
        for height, level in enumerate(levels)
        for index, room in enumerate(level)
    }
    picture = Figure(figsize=(max(8.0, 1.25 * width), 1.1 * len(levels) + 0.6), layout="constrained")
    axes = picture.subplots()
    for (above, below), count in sorted(counts.items()):
        wrong = reaches(set(counts), below, above)
        style = {"arrowstyle": "-|>", "color": "#c0392b" if wrong else "#9aa5b1", "lw": 0.6 + 0.12 * min(count, 12)}
        axes.annotate("", place[below], place[above], arrowprops={**style, "shrinkA": 11, "shrinkB": 11})
    for room, (x, y) in place.items():
        folder = (package / room).is_dir()
        box = {"boxstyle": "round,pad=0.35", "fc": "#e8f0fe" if folder else "white", "ec": "#5b6b7b", "lw": 0.8}
        axes.text(x, y, room, ha="center", va="center", fontsize=9, bbox=box)
    axes.set(xlim=(0, width), ylim=(-0.5, len(levels) - 0.5))
    axes.set_axis_off()
    figure.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(figure, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    given = [Path(word) for word in sys.argv[1:]]
    draw(
        given[0] if given else HOME.parent / "lightning_lr", given[1] if len(given) > 1 else HOME / "figures/rooms.png"
    )
