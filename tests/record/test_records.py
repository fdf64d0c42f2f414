"""Records: what a real run has written as data, read back by TensorBoard's own readers."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

import lightning_lr as llr
from lightning_lr.internals import file_writer
from lightning_lr.record import records
from lightning_lr.record.records import PLUGIN, TAG, records_in
from lightning_lr.story.parsed_records import number
from tests.faulty import BATCHES, Faulty
from tests.logged import Ends, Remote, bumpy, stairs, tensorboard, two_of_a_type
from tests.pool import Pool
from tests.small import Loader, Model, cosine, held_out, pl, sgd, trainer

FAULTS = {**dict.fromkeys(range(20, 26), "nan"), 40: "weight"}


def read(folder: Path) -> list[dict[str, Any]]:
    """The records of all event files of a run, in the order of the files' names; each at its own event's step."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value if event.HasField("summary") else ():
                if value.tag == TAG:
                    # its metadata is left out after the first: the reader keeps it by tag
                    of_event = records_in(value.tensor)
                    assert [record["step"] for record in of_event] == [event.step] * len(of_event)
                    assert value.tensor.tensor_shape.dim[0].size == len(of_event)
                    found += of_event
    return found


def kinds(found: list[dict[str, Any]]) -> Counter[str]:
    return Counter(f"{record['kind']} {record.get('what') or ''}".strip() for record in found)


def of_kind(found: list[dict[str, Any]], kind: str, what: str | None = None) -> list[dict[str, Any]]:
    return [record for record in found if record["kind"] == kind and record.get("what") == what]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Warm-up, a sweep, bad batches, a trial and a rewind; the folder, the monitor and the finder."""
    root = tmp_path_factory.mktemp("run")
    monitor, finder = llr.LRMonitor(), llr.LRFinder(at=30, steps=20)
    guard = llr.DivergenceGuard(snapshot_every=10)
    callbacks = [llr.Warmup(5), finder, guard, monitor]
    faults = {**FAULTS, 16: "loss", 75: "nan", 80: "weight", 90: "weight"}
    del faults[40]
    fit = trainer(root, callbacks=callbacks, logger=[tensorboard(root), tensorboard(root, "two")], max_epochs=10)
    fit.fit(Faulty(faults=faults), Loader(BATCHES, 16), held_out())
    return root, monitor, finder


def test_the_event_file_has_the_very_records_that_are_in_memory(run: Any) -> None:
    root, monitor, _ = run
    found = read(root / "tb" / "version_0")
    assert found == list(monitor.journal.records.kept)
    assert found == read(root / "two" / "version_0")
    for record in found:
        json.dumps(record, allow_nan=False)
    assert kinds(found).keys() >= {
        *("run", "first", "change", "drift", "finding", "end", "note"),
        *("incident limited", "incident dropped", "incident held", "incident trial data", "incident rewound"),
    }


def test_tensorboard_knows_whose_they_are(run: Any) -> None:
    root, _, _ = run
    events = EventAccumulator(str(root / "tb" / "version_0"), size_guidance={"tensors": 0})
    events.Reload()
    plugin = events.SummaryMetadata(TAG).plugin_data
    assert (plugin.plugin_name, json.loads(plugin.content)) == (PLUGIN, {"version": 1})
    assert sum(len(event.tensor_proto.string_val) for event in events.Tensors(TAG)) == len(
        read(root / "tb" / "version_0")
    )


def test_every_line_that_is_told_is_in_the_records_at_its_step(run: Any) -> None:
    root, monitor, _ = run
    found = read(root / "tb" / "version_0")
    said = {f"step {r['step']}: {r['words']}" for r in found if r.get("told", True)}
    lines = {line.removesuffix("; more like this are counted") for line in monitor.story}
    assert lines == {line.removesuffix("; more like this are counted") for line in said} - {
        f"step {r['step']}: {r['words']}" for r in found if r["kind"] in ("run", "end")
    }


def test_a_change_has_the_numbers_of_monitor_changes_and_its_parts_explain_it(run: Any) -> None:
    root, monitor, _ = run
    changes = {(c.step, c.optimizer, c.group): c for c in monitor.changes}
    found = of_kind(read(root / "tb" / "version_0"), "change")
    assert found
    for record in found:
        change = changes[record["step"], record["optimizer"], record["group"]]
        assert (record["old"], record["new"], record["cause"]) == (change.old, change.new, change.cause)
        ratio = math.prod(part["new"] / part["old"] for part in record["parts"])
        assert record["new"] / record["old"] == pytest.approx(ratio)
        assert set(record["loud"]) <= {part["source"] for part in record["parts"]}


def test_an_incident_has_what_the_guard_saw(run: Any) -> None:
    root, _, _ = run
    found = read(root / "tb" / "version_0")
    counts = of_kind(found, "end")[0]["counts"]
    number_of = {what: len(of_kind(found, "incident", what)) for what in ("limited", "dropped", "held", "rewound")}
    assert number_of["limited"] == counts["limited"]
    assert number_of["dropped"] == counts["dropped"]
    # a trial's last update too, beside the record of its outcome
    assert number_of["held"] == counts["held"]
    assert number_of["rewound"] == counts["rewinds"]
    dropped = of_kind(found, "incident", "dropped")[0]
    assert (dropped["step"], dropped["update"], dropped["epoch"], dropped["batch"]) == (20, 21, 1, 8)
    assert math.isnan(number(dropped["loss"]))
    assert (dropped["optimizer"], dropped["tag"], dropped["rank"]) == ("AdamW", "lr-AdamW", None)
    assert len(dropped["parameters"]) == 3
    limited = of_kind(found, "incident", "limited")[0]
    assert 0.0 < limited["threshold"] < limited["grad_norm"]
    rewound = of_kind(found, "incident", "rewound")[0]
    assert f"rewound to step {rewound['back']['step']} ({rewound['back']['lost']} updates lost)" in rewound["words"]
    assert rewound["back"]["step"] < rewound["step"]
    trial = of_kind(found, "incident", "trial data")[0]
    assert trial["evidence"]["here"] > 0 if isinstance(trial["evidence"]["here"], float) else True
    assert trial["evidence"]["batches"] > 1
    held = [r for r in of_kind(found, "incident", "held") if r["step"] < trial["step"]]
    assert {"present", "best"} <= {r["side"] for r in held}


def test_a_finding_is_there_as_the_finder_has_it(run: Any) -> None:
    root, _, finder = run
    (record,) = of_kind(read(root / "tb" / "version_0"), "finding")
    assert (record["callback"], record["tag"], record["applied"]) == ("LRFinder", "lr-AdamW", True)
    assert record["finding"] == records.to_json(finder.result.to_dict())


def test_a_run_says_first_what_it_is_and_last_how_it_ended(run: Any) -> None:
    root, monitor, finder = run
    found = read(root / "tb" / "version_0")
    first, last = found[0], of_kind(found, "end")[0]
    assert (first["kind"], first["step"], first["resumed"], first["updates"]) == ("run", 0, False, 120)
    assert first["groups"] == [{"tag": "lr-AdamW", "optimizer": "AdamW", "group": "", "scheduled": False}]
    assert set(first["factors"]) == {"Warmup", "LRFinder", "DivergenceGuard"}
    assert {"name": "LRFinder", "written": "LRFinder(at=30, steps=20)"} in first["callbacks"]
    assert (last["status"], last["error"], last["left_out"]) == ("finished", None, 0)
    assert last["updates"] == finder.ledger.updates(0)
    assert last["rates"] == monitor.rates


# how runs end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (None, "stopped", None),
        (KeyError("two\nlines"), "failed", "KeyError: 'two\\nlines'"),
        (RuntimeError("two\nlines"), "failed", "RuntimeError: two"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt: "),
    ],
)
def test_the_end_says_how_a_run_ended(error: Any, status: str, told: str | None, tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[llr.Warmup(3)], logger=tensorboard(tmp_path), max_epochs=3)
    # Lightning makes an interrupt an exit of the process
    with contextlib.suppress(KeyError, RuntimeError, KeyboardInterrupt, SystemExit):
        fit.fit(Ends(error), Loader(10))
    *_, last = read(tmp_path / "tb" / "version_0")
    assert (last["kind"], last["status"], last["error"]) == ("end", status, told)
    assert last["updates"] == (7 if error is not None else 8)
    assert last["rates"] == {"lr-SGD": pytest.approx(0.1)}


def test_a_guard_that_gives_up_says_so_and_the_run_failed(tmp_path: Path) -> None:
    guard = llr.DivergenceGuard(snapshot_every=10, max_rewinds=1)
    faults = dict.fromkeys(range(30, 200), "weight")
    fit = trainer(tmp_path, callbacks=[guard], logger=tensorboard(tmp_path), max_epochs=10)
    with pytest.raises(llr.DivergenceError):
        fit.fit(Faulty(faults=faults), Loader(BATCHES, 16))
    found = read(tmp_path / "tb" / "version_0")
    (gave_up,), (end,) = of_kind(found, "incident", "gave up"), of_kind(found, "end")
    assert gave_up["words"].startswith("DivergenceGuard gives up after 2 rewinds")
    assert gave_up["cause"] == "the weights are not finite"
    assert end["status"] == "failed"
    assert end["error"].startswith("DivergenceError: DivergenceGuard gives up after 2 rewinds")


# resume --------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_tells_that_it_was_resumed_and_nothing_twice(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 4

    def fit(name: str, *more: Any, path: Any = None) -> list[dict[str, Any]]:
        callbacks = [llr.Warmup(30), llr.LRFinder(at=2, steps=20), llr.DivergenceGuard(snapshot_every=10)]
        logger = tensorboard(tmp_path, name)
        made = trainer(tmp_path, callbacks=[*callbacks, llr.LRMonitor(), *more], logger=logger, max_epochs=8)
        made.fit(Faulty(stairs, {70: "nan"}), Loader(BATCHES, 16), ckpt_path=path)
        made.save_checkpoint(tmp_path / f"{name}.ckpt")
        return read(tmp_path / name / "version_0")

    whole, half = fit("whole"), fit("half", Stop())
    rest = fit("half", path=tmp_path / "half.ckpt")[len(half) :]
    assert of_kind(half, "run")[0]["resumed"] is False
    (again,) = of_kind(rest, "run")
    assert (again["resumed"], again["step"], again["updates"]) == (True, 60, of_kind(whole, "run")[0]["updates"])
    assert again == rest[0]
    assert kinds(rest)["first"] == kinds(rest)["finding"] == 0

    def what(found: list[dict[str, Any]]) -> list[Any]:
        return [(r["kind"], r["step"], r["words"]) for r in found if r["kind"] in ("change", "incident", "finding")]

    assert what(half) + what(rest) == what(whole)


# several processes -----------------------------------------------------------------------------------------------


def fit_on_a_rank(root: str) -> Any:
    monitor, guard = llr.LRMonitor(), llr.DivergenceGuard(snapshot_every=10)
    logger = tensorboard(root)
    fit = trainer(root, callbacks=[guard, monitor], logger=logger, devices=2, strategy="ddp", max_epochs=5)
    model = Faulty(faults={20: "nanloss", 30: "grad", 40: "weight"}, rank=1)
    fit.fit(model, Loader(BATCHES, 16, offset=16 * fit.global_rank))
    return [
        # the clock, and the names of what is not finite, are each rank's own
        {**record, "time": 0, "parameters": [], "words": record["words"].partition("; not finite")[0]}
        for record in monitor.journal.records.kept
    ]


def test_on_two_ranks_one_writes_and_a_fault_on_one_only_has_its_rank(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path))
    assert first == second
    files = list((tmp_path / "tb" / "version_0").glob("events*"))
    assert len(files) == 1
    found = read(tmp_path / "tb" / "version_0")
    assert len(found) == len(first)
    assert found[0]["processes"] == 2
    incidents = {r["step"]: (r["what"], r["rank"]) for r in found if r["kind"] == "incident" and r["what"] != "held"}
    # gradients are one and the same on all ranks when anybody can see them
    assert incidents == {20: ("dropped", 1), 30: ("dropped", None), 40: ("rewound", 1)}


# other loggers, other runs -----------------------------------------------------------------------------------------


class Looks(pl.loggers.Logger):
    """Its experiment has the methods of a `SummaryWriter`, and a file writer of another make."""

    name, version = "looks", 0

    def __init__(self, experiment: Any) -> None:
        super().__init__()
        self._experiment = experiment

    @property
    def experiment(self) -> Any:
        return self._experiment

    def log_metrics(self, *_: Any, **__: Any) -> None:
        pass

    def log_hyperparams(self, *_: Any) -> None:
        pass


class Experiment:
    _get_file_writer = None

    def add_scalar(self, *_: Any) -> None:
        pass


class Foreign(Experiment):
    event_writer = object()

    def _get_file_writer(self) -> Any:  # pyright: ignore
        return self


@pytest.mark.parametrize("logger", [False, Remote, lambda: Looks(Experiment()), lambda: Looks(Foreign())])
def test_without_tensorboard_they_are_in_memory_only(logger: Any, tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    made = logger and logger()
    trainer(tmp_path, callbacks=[monitor], logger=made, max_epochs=1).fit(Model(stairs), Loader(120, 2))
    found = list(monitor.journal.records.kept)
    assert kinds(found) == {"run": 1, "first": 1, "change": 2, "end": 1}
    assert not made or file_writer(made) is None


def test_a_fast_dev_run_writes_nothing_and_fails_nowhere(tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=True, fast_dev_run=2).fit(Model(sgd), Loader(4))
    assert not list(tmp_path.rglob("events*"))


def test_without_a_monitor_there_are_the_same_records(tmp_path: Path) -> None:
    found = []
    for name, more in (("with", [llr.LRMonitor()]), ("without", [])):
        fit = trainer(tmp_path, callbacks=[llr.Warmup(8), *more], logger=tensorboard(tmp_path, name), max_epochs=5)
        fit.fit(Model(lambda m: cosine(m, 100)), Loader(20))
        records = read(tmp_path / name / "version_0")
        found.append([(r["kind"], r["step"], r.get("old"), r.get("new"), r.get("loud")) for r in records])
    assert found[0] == found[1]


def test_groups_that_are_added_make_the_run_describe_itself_again(tmp_path: Path) -> None:
    class Unfreeze(Model):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.optimizers[0].add_param_group({"params": self.backbone.parameters()})

    model = Unfreeze(lambda m: torch.optim.SGD(m.head.parameters(), lr=0.1), 4)
    trainer(tmp_path, callbacks=[llr.Warmup(2)], logger=tensorboard(tmp_path)).fit(model, Loader(4))
    found = read(tmp_path / "tb" / "version_0")
    before, after = of_kind(found, "run")
    assert [group["tag"] for group in before["groups"]] == ["lr-SGD"]
    assert [group["tag"] for group in after["groups"]] == ["lr-SGD/pg1", "lr-SGD/pg2"]
    assert (after["step"], after["resumed"]) == (4, False)


def test_under_manual_optimization_each_record_names_its_optimizer(tmp_path: Path) -> None:
    class Pair(Model):
        def __init__(self) -> None:
            super().__init__(two_of_a_type, 4)
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for index, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
                broken = index and self.trainer.fit_loop.epoch_loop.total_batch_idx in range(20, 30)
                self.manual_backward(loss * math.nan if broken else loss)
                optimizer.step()

    guard = llr.DivergenceGuard(snapshot_every=10, trials=False)
    fit = trainer(tmp_path, callbacks=[guard, llr.Warmup(3)], logger=tensorboard(tmp_path), max_epochs=3)
    fit.fit(Pair(), Loader(12, 16))
    found = read(tmp_path / "tb" / "version_0")
    assert {r["tag"] for r in of_kind(found, "change")} == {"lr-Adam", "lr-Adam-1"}
    dropped = of_kind(found, "incident", "dropped")
    assert [(r["step"], r["optimizer"]) for r in dropped] == [(step, "Adam-1") for step in range(20, 30)]
    assert [r["told"] for r in dropped] == [True] * 3 + [False] * 7
    (counted,) = of_kind(found, "note", "count")
    assert counted["words"].startswith("DivergenceGuard: dropped of Adam-1 7 more like this")


# how many ----------------------------------------------------------------------------------------------------------


def test_a_schedule_by_step_is_a_few_records_and_no_more(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=tensorboard(tmp_path), max_epochs=4)
    fit.fit(Model(bumpy), Loader(20))
    found = kinds(read(tmp_path / "tb" / "version_0"))
    assert found == {"run": 1, "first": 1, "change": 3 + 1 + 3, "drift": 2, "end": 1}


def test_updates_without_a_change_write_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    add = records.Records.add

    def noted(self: Any, record: Any, **more: Any) -> None:
        steps.append(record["step"])
        add(self, record, **more)

    monkeypatch.setattr(records.Records, "add", noted)
    callbacks = [llr.Warmup(2), llr.DivergenceGuard(), llr.LRMonitor()]
    trainer(tmp_path, callbacks=callbacks, logger=tensorboard(tmp_path), max_epochs=5).fit(Model(sgd), Loader(20))
    assert set(steps) == {0, 1, 100}


def test_of_very_many_only_the_weighty_ones_are_written_and_the_end_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(records, "MOST", 20)
    guard, monitor = llr.DivergenceGuard(snapshot_every=10, trials=False), llr.LRMonitor()
    faults = {**dict.fromkeys(range(20, 80, 2), "nan"), 90: "weight", 92: "weight"}
    with caplog.at_level(logging.ERROR):
        fit = trainer(tmp_path, callbacks=[guard, monitor], logger=tensorboard(tmp_path), max_epochs=10)
        fit.fit(Faulty(faults=faults), Loader(BATCHES, 16))
    found, kept = read(tmp_path / "tb" / "version_0"), list(monitor.journal.records.kept)
    assert kinds(kept)["incident dropped"] == 30
    assert kinds(found)["incident dropped"] < 20
    assert kinds(found)["incident rewound"] == 2
    assert "DivergenceGuard" in {source for r in of_kind(found, "change") for source in r["loud"]}
    end = of_kind(found, "end")[0]
    assert end["left_out"] == len(kept) - len(found) > 0
