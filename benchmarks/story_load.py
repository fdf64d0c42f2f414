"""How fast long runs can be looked at: seconds, bytes and memory for ten runs of a million updates each.

Writes event files as `LRMonitor` would: a rate at every update under a cosine, the loss at every 50th, 10,000 changes
with their records, 500 incidents. Then reads them in fresh processes. `python benchmarks/story_load.py`
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event

from lightning_lr.record.records import PLUGIN, TAG
from lightning_lr.story import Story, health_of, runs, thin
from lightning_lr.story.checksum import checksums

LOSS_EVERY, CHANGE_EVERY, INCIDENT_EVERY = 50, 100, 2000
POINTS = 1000


def frames(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The frames of an event file around data of one length, shape (n, length)."""
    count, length = rows.shape
    head = np.full(count, length, "<u8").view(np.uint8).reshape(count, 8)
    parts = [head, _bytes(checksums(head)), rows, _bytes(checksums(rows))]
    return np.concatenate(parts, axis=1)


def scalars(tag: str, steps: NDArray[np.int64], values: NDArray[np.float64], begin: float) -> list[bytes]:
    """The frames of scalars."""
    out: list[bytes] = [b""] * len(steps)
    for size in range(1, 5):
        own = np.flatnonzero((steps >= (128 ** (size - 1) if size > 1 else 1)) & (steps < 128**size))
        if not len(own):
            continue
        event = Event(wall_time=1.0, step=int(steps[own[0]]))
        event.summary.value.add(tag=tag, simple_value=1.0)
        rows = np.tile(np.frombuffer(event.SerializeToString(), np.uint8), (len(own), 1))
        rows[:, 1:9] = (begin + steps[own] * 0.01).view(np.uint8).reshape(-1, 8)
        for i in range(size):
            more = 0x80 if i < size - 1 else 0
            rows[:, 10 + i] = (steps[own] >> 7 * i) & 0x7F | more
        rows[:, -4:] = values[own].astype("<f4").view(np.uint8).reshape(-1, 4)
        for place, row in zip(own.tolist(), frames(rows), strict=True):
            out[place] = row.tobytes()
    for place in np.flatnonzero(steps == 0).tolist():
        event = Event(wall_time=begin, step=0)
        event.summary.value.add(tag=tag, simple_value=float(values[place]))
        out[place] = frame(event.SerializeToString())
    return out


def frame(data: bytes) -> bytes:
    """One frame."""
    return frames(np.frombuffer(data, np.uint8)[None, :]).tobytes()


def record(step: int, time: float, fields: dict[str, object]) -> bytes:
    """The frame of a summary with one record."""
    event = Event(wall_time=time, step=step)
    value = event.summary.value.add(tag=TAG)
    value.metadata.plugin_data.plugin_name = PLUGIN
    value.metadata.plugin_data.content = b'{"version": 1}'
    value.tensor.dtype = 7
    value.tensor.tensor_shape.dim.add(size=1)
    value.tensor.string_val.append(json.dumps({"step": step, **fields}).encode())
    return frame(event.SerializeToString())


def write(folder: Path, updates: int, seed: int) -> None:
    """One run."""
    folder.mkdir(parents=True)
    random, begin = np.random.default_rng(seed), 1.7e9
    steps = np.arange(updates)
    factor = np.cumprod(np.where(steps % CHANGE_EVERY, 1.0, random.uniform(0.9, 1.1, updates)))
    rates = 1e-3 * 0.5 * (1 + np.cos(math.pi * steps / updates)) * factor
    losses = 2.0 * np.exp(-3.0 * steps / updates) + random.normal(0, 0.1, updates)
    told = steps[steps % LOSS_EVERY == 0]
    changed = steps[(steps % CHANGE_EVERY == 0) & (steps > 0)]
    hurt = steps[(steps % INCIDENT_EVERY == 7) & (steps > 7)]
    rows: dict[int, list[bytes]] = {}
    for tag, own, values in (
        ("train_loss", told, losses),
        ("lr-factor/PlateauDecay", changed, factor),
        ("lr-incident/loss", hurt, losses * 10),
        ("lr-incident/grad_norm", hurt, losses * 50),
    ):
        for step, one in zip(own.tolist(), scalars(tag, own, values[own], begin), strict=True):
            rows.setdefault(step, []).append(one)
    group = {"tag": "lr-AdamW", "optimizer": "AdamW", "group": ""}
    for step in changed.tolist():
        old, new = float(factor[step - 1]), float(factor[step])
        reason = f"val_loss has not improved for {step % 9} checks"
        fields = {"kind": "change", **group, "old": float(rates[step - 1]), "new": float(rates[step]), "update": step}
        cause = f"PlateauDecay {old:.6g} -> {new:.6g}: {reason}"
        fields |= {"parts": [{"source": "PlateauDecay", "old": old, "new": new, "reason": reason}], "cause": cause}
        words = f"AdamW: {rates[step - 1]:.6g} -> {rates[step]:.6g}: {cause}"
        rows[step].append(record(step, begin + step * 0.01, {**fields, "words": words}))
    for step in hurt.tolist():
        fields = {"kind": "incident", "callback": "DivergenceGuard", "what": "limited", "loss": float(losses[step])}
        fields |= {"grad_norm": 50.0, "threshold": 4.0, "cause": "gradient norm above 4 times the largest of late"}
        words = f"DivergenceGuard: limited this update's gradient: {fields['cause']}"
        rows[step].append(record(step, begin + step * 0.01, {**fields, "words": words}))
    with (folder / f"events.out.tfevents.{int(begin)}.host.1.0").open("wb") as file:
        file.write(frame(Event(wall_time=begin, file_version="brain.Event:2").SerializeToString()))
        run = {"kind": "run", "groups": [group], "factors": ["PlateauDecay", "DivergenceGuard"], "resumed": False}
        file.write(record(0, begin, run))
        for step, one in enumerate(scalars("lr-AdamW", steps, rates, begin)):
            file.write(one)
            file.write(b"".join(rows.get(step, ())))


def answer(story: Story) -> bytes:
    """What a page shows first: the sentence, the rate, the loss, and the latest records."""
    series = {}
    for tag in ("lr-AdamW", "train_loss", "lr-factor/PlateauDecay"):
        at, values, _ = thin(*story.series(tag), POINTS)
        series[tag] = [at.tolist(), [float(f"{value:.7g}") for value in values]]
    return json.dumps({"now": health_of(story).to_dict(), "series": series, "records": story.valid[-200:]}).encode()


def measure(logdir: str) -> dict[str, tuple[float, ...]]:
    """Reads all runs; seconds are wall time and this process's own, memory is that of this process."""
    figures: dict[str, tuple[float, ...]] = {}

    def timed(name: str, what: Callable[[], Any]) -> Any:
        wall, own = time.perf_counter(), time.process_time()
        found = what()
        figures[name] = (time.perf_counter() - wall, time.process_time() - own)
        return found

    # without the runs: Python, numpy and TensorBoard's classes
    figures["memory before, MiB"] = (_peak(),)
    first, *others = [Story(folder, name) for name, folder in runs(logdir).items()]
    timed("read one run", first.refresh)
    found = timed("answer for it", lambda: answer(first))
    timed("answer for it again", lambda: answer(first))
    timed("one thinned series", lambda: thin(*first.series("lr-AdamW"), POINTS))
    figures["bytes of an answer"] = (len(found),)
    timed("read the other runs", lambda: [story.refresh() for story in others])
    timed("answers for them", lambda: [answer(story) for story in others])
    timed("look for news in all", lambda: [story.refresh() for story in (first, *others)])
    figures["peak memory, MiB"] = (_peak(),)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--folder", help="to keep the files, and to read them again")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.folder)))
        return
    folder = Path(args.folder or tempfile.mkdtemp())
    for seed in range(args.runs):
        if not (folder / f"run_{seed}").exists():
            # in a process of its own: what that took would count as the reader's memory
            process = multiprocessing.get_context("spawn").Process(
                target=write, args=(folder / f"run_{seed}", args.updates, seed)
            )
            process.start()
            process.join()
    size = sum(path.stat().st_size for path in folder.rglob("*tfevents*"))
    print(f"{args.runs} runs of {args.updates:,} updates, {size / 2**20:.0f} MiB of event files")
    command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print("seconds: by the clock, and of the processor")
    for name, figure in figures.items():
        print(f"{name:24}", *(f"{one:12,.0f}" if len(figure) == 1 else f"{one:12.3f}" for one in figure))
    if not args.folder:
        shutil.rmtree(folder)


def _bytes(crcs: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return crcs.astype("<u4").view(np.uint8).reshape(-1, 4)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
