"""The story: what is in event files, whatever state they are in."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr import DivergenceGuard, LRMonitor, Warmup
from lightning_lr.story import NothingToRead, Story, health_of, runs, thin
from lightning_lr.story.checksum import checksums
from tests.eventfiles import END, GROUP, HURT, RUN, Writer, frames, run, write
from tests.small import Loader, Model, cosine, pl, trainer

OLD = Path(__file__).parent.parent / "old"
ROOT = Path(__file__).parent.parent.parent


def read(folder: Path) -> Story:
    story = Story(str(folder), folder.name)
    story.refresh()
    return story


def steps(story: Story, tag: str = "lr-SGD") -> list[int]:
    return story.series(tag)[0].tolist()


# what is there, exactly ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lr-SGD", "lr-Adam", "loss", "x" * 500, "lr-SGD/pg1", "lr-SGD/pg2"]),
            st.sampled_from([0, 1, 127, 128, 16_383, 16_384, 2_097_152, 2**31, 2**40]),
            st.floats(width=32),
        )
    )
)
def test_every_point_is_read_as_it_was_written(points: list[tuple[str, int, float]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder))
        for tag, step, value in points:
            writer.scalar(tag, step, value)
        story = read(Path(folder))
        for tag in {tag for tag, _, _ in points}:
            expected = sorted(((s, v) for t, s, v in points if t == tag), key=lambda point: point[0])
            found = story.series(tag)
            assert found[0].tolist() == [step for step, _ in expected]
            np.testing.assert_array_equal(found[1], [value for _, value in expected])
        assert story.damage == ""


@pytest.mark.parametrize("length", [1, 3, 4, 5, 60, 2047, 2048, 2049, 5000])
def test_checksums_are_tensorboards_own(length: int) -> None:
    from tensorboard.summary.writer.record_writer import masked_crc32c

    rows = np.random.default_rng(length).integers(0, 256, (3, length), np.uint8)
    assert checksums(rows).tolist() == [masked_crc32c(row.tobytes()) for row in rows]
    many = np.tile(rows, (400, 1))
    assert checksums(many).tolist() == checksums(rows).tolist() * 400


def test_a_real_run_has_the_monitors_own_changes(tmp_path: Path) -> None:
    monitor = LRMonitor()
    callbacks = [Warmup(6), DivergenceGuard(), monitor]
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="v")
    fit = trainer(tmp_path, callbacks=callbacks, logger=logger, max_epochs=4)
    model = Model(cosine)
    fit.fit(model, Loader())
    story = read(tmp_path / "v")
    at, rates = story.series("lr-SGD")
    assert at.tolist() == list(range(24))
    np.testing.assert_array_equal(rates, np.float32([rate for (rate,) in model.trace]))
    told = [(r["step"], r["old"], r["new"]) for r in story.valid if r["kind"] == "change"]
    assert set(told) <= {(change.step, change.old, change.new) for change in monitor.changes}
    assert story.groups == [GROUP | {"scheduled": True}]
    assert "(scheduler)" in health_of(story).sentence
    assert story.factors == ["Warmup", "DivergenceGuard"]
    found = health_of(story)
    assert found.state == "ended"
    assert found.sentence.startswith("Finished at step 2")
    assert "lr-SGD at 0.0" in found.sentence


def test_what_is_added_is_read_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path).record(0, **RUN).scalar("lr-SGD", 0, 0.1)
    story = read(tmp_path)
    assert (steps(story), story.refresh()) == ([0], False)
    writer.scalar("lr-SGD", 1, 0.2).record(1, **HURT, what="dropped")
    assert story.refresh()
    assert steps(story) == [0, 1]
    assert [record["kind"] for record in story.records] == ["run", "incident"]


# files in a bad state --------------------------------------------------------------------------------------------


def test_a_half_written_record_is_waited_for(tmp_path: Path) -> None:
    writer = run(tmp_path)
    whole = writer.path.read_bytes()
    for cut in (1, 5, 13, 40):
        writer.path.write_bytes(whole[:-cut])
        story = read(tmp_path)
        assert len(steps(story)) == 100
        assert story.damage == ""
        assert any("in the middle of a record" in remark for remark in story.remarks)
        writer.path.write_bytes(whole)
        assert story.refresh()
        assert story.factors == ["DivergenceGuard"]
        assert story.series("lr-factor/DivergenceGuard")[1].tolist() == [1.0]


@pytest.mark.parametrize("byte", [0, 9, 12 + 3, 12 + 12, -1])
@pytest.mark.parametrize("frame", [0, 1, 101, -1])
def test_a_damaged_file_is_read_up_to_the_damage_which_is_named(tmp_path: Path, byte: int, frame: int) -> None:
    writer = run(tmp_path)
    begins = [*frames(writer.path), writer.path.stat().st_size]
    place = begins[frame] if frame >= 0 else begins[-2]
    data = bytearray(writer.path.read_bytes())
    data[place + byte if byte >= 0 else begins[begins.index(place) + 1] - 1] ^= 0x40
    writer.path.write_bytes(data)
    story = read(tmp_path)
    # the version, the record, then a rate and a loss in turn
    count = {0: 0, 1: 0, 101: 50, -1: 100}[frame]
    assert len(steps(story)) == count
    assert f"at byte {place:,}" in story.damage
    assert not story.refresh()


def test_zeros_at_the_end_as_after_a_power_cut_are_named(tmp_path: Path) -> None:
    writer = run(tmp_path)
    size = writer.path.stat().st_size
    with writer.path.open("ab") as file:
        file.write(bytes(4096))
    story = read(tmp_path)
    assert len(steps(story)) == 100
    assert f"{size:,}" in story.damage


def test_a_file_that_is_being_written_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.time() - 250.0
    writer = run(tmp_path, time=begin)
    story = read(tmp_path)
    assert story.writing
    assert health_of(story).state == "healthy"
    monkeypatch.setattr(time, "time", lambda: begin + 1000.0)
    assert not story.writing
    assert health_of(story).state == "unfinished"
    writer.record(100, **END)
    story.refresh()
    assert not story.writing
    assert health_of(story).state == "ended"


def test_not_a_number_and_infinity_are_values_like_others(tmp_path: Path) -> None:
    writer = Writer(tmp_path).record(0, **RUN)
    writer.scalars("lr-SGD", [(0, 0.1), (1, math.nan), (2, math.inf), (3, -math.inf)])
    writer.record(3, **HURT, what="dropped", loss=math.nan)
    story = read(tmp_path)
    assert [str(value) for value in story.series("lr-SGD")[1][1:]] == ["nan", "inf", "-inf"]
    assert story.records[-1]["loss"] == "nan"
    assert health_of(story).sentence


def test_records_that_are_no_json_are_left_out(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    from lightning_lr.record.records import as_summary

    writer = Writer(tmp_path).record(0, **RUN)
    broken = as_summary([{}, {}, {"kind": "note", "step": 1}])
    broken.value[0].tensor.string_val[0] = b"{"
    broken.value[0].tensor.string_val[1] = b"[1]"
    writer._event(step=1, summary=Event(summary=broken).summary)
    assert [record["kind"] for record in read(tmp_path).records] == ["run", "note"]


# several files, several runs -------------------------------------------------------------------------------------


def test_a_resumed_run_replaces_what_it_makes_anew(tmp_path: Path) -> None:
    first = Writer(tmp_path, 1e9).record(0, **RUN)
    first.scalars("lr-SGD", [(step, 0.1) for step in range(10)]).scalar("hp", 0, 1.0).scalar("train_loss", 9, 1.0)
    first.record(8, **HURT, what="dropped").record(3, **HURT, what="limited")
    second = Writer(tmp_path, 2e9).scalar("hp", 0, 2.0).record(6, **{**RUN, "resumed": True})
    second.scalars("lr-SGD", [(step, 0.2) for step in range(6, 9)])
    story = read(tmp_path)
    assert story.series("lr-SGD")[0].tolist() == list(range(9))
    assert story.series("lr-SGD")[1].round(1).tolist() == [0.1] * 6 + [0.2] * 3
    # the resumed run has no loss there yet, but what was made anew isn't true any more
    assert steps(story, "train_loss") == []
    assert story.series("hp")[1].tolist() == [2.0]
    assert [(r["step"], r["what"]) for r in story.valid if r["kind"] == "incident"] == [(3, "limited")]
    assert sum(bool(record.get("superseded")) for record in story.records) == 1
    assert any("resumed" in remark for remark in story.remarks)


def test_a_run_that_is_resumed_where_it_stopped_loses_nothing(tmp_path: Path) -> None:
    Writer(tmp_path, 1e9).record(0, **RUN).scalars("lr-SGD", [(0, 0.1), (1, 0.1)])
    Writer(tmp_path, 2e9).record(2, **{**RUN, "resumed": True}).scalars("lr-SGD", [(2, 0.1)])
    story = read(tmp_path)
    assert steps(story) == [0, 1, 2]
    assert story.remarks == []


def test_a_run_that_goes_on_where_it_had_finished_was_not_resumed_lower(tmp_path: Path) -> None:
    checkpoint = tmp_path / "a.ckpt"
    for epochs in (2, 4):
        logger = pl.loggers.TensorBoardLogger(tmp_path, name="", version="v")
        fit = trainer(tmp_path, callbacks=[DivergenceGuard(), LRMonitor()], logger=logger, max_epochs=epochs)
        fit.fit(Model(cosine), Loader(), ckpt_path=checkpoint if checkpoint.exists() else None)
        fit.save_checkpoint(checkpoint)
    assert read(tmp_path / "v").remarks == []
    story = read(tmp_path / "v")
    assert [record["kind"] for record in story.records].count("run") == 2


def test_a_second_fit_in_one_file_replaces_the_first(tmp_path: Path) -> None:
    writer = Writer(tmp_path).record(0, **RUN).scalars("lr-SGD", [(s, 0.1) for s in range(5)]).record(5, **END)
    writer.record(0, **RUN).scalars("lr-SGD", [(0, 0.2), (1, 0.2)])
    story = read(tmp_path)
    assert story.series("lr-SGD")[1].round(1).tolist() == [0.2, 0.2]
    assert story.end is None


def test_groups_that_are_added_within_a_run_replace_nothing(tmp_path: Path) -> None:
    writer = Writer(tmp_path).record(0, **RUN).scalars("lr-SGD", [(0, 0.1), (1, 0.1)])
    other = {"tag": "lr-SGD/pg2", "optimizer": "SGD", "group": "pg2"}
    writer.record(1, **{**RUN, "groups": [GROUP, other]}).scalar("lr-SGD", 2, 0.1).scalar("lr-SGD/pg2", 2, 0.1)
    story = read(tmp_path)
    assert steps(story) == [0, 1, 2]
    assert story.tags.rates == ["lr-SGD", "lr-SGD/pg2"]


def test_files_before_records_resume_too(tmp_path: Path) -> None:
    Writer(tmp_path, 1e9).scalars("lr-SGD", [(s, 0.1) for s in range(5)]).scalars("loss", [(3, 1.0), (4, 1.0)])
    Writer(tmp_path, 2e9).scalars("lr-SGD", [(s, 0.2) for s in range(3, 6)])
    story = read(tmp_path)
    assert steps(story) == list(range(6))
    assert steps(story, "loss") == []


def test_two_writers_at_the_same_time_are_put_together_and_named(tmp_path: Path) -> None:
    one = Writer(tmp_path, 1e9, "1").record(0, **RUN)
    two = Writer(tmp_path, 1e9 + 2, "2").record(0, **RUN)
    for step in range(5):
        one.scalar("lr-SGD", 2 * step, 0.1)
        two.scalar("lr-SGD", 2 * step + 1, 0.1)
    story = read(tmp_path)
    assert steps(story) == list(range(10))
    assert any("two writers" in remark for remark in story.remarks)


def test_runs_have_tensorboards_names(tmp_path: Path) -> None:
    for name in ("", "b", "a/version_0"):
        run(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    assert list(runs(str(tmp_path))) == [".", "a/version_0", "b"]


@pytest.mark.parametrize(("name", "words"), [("none", "no such folder"), ("", "no event files"), ("f", "is a file")])
def test_a_folder_without_runs_is_an_error_in_words(tmp_path: Path, name: str, words: str) -> None:
    if name == "f":
        (tmp_path / "f").touch()
    with pytest.raises(NothingToRead, match=words):
        runs(str(tmp_path / name))


def test_a_run_without_our_data_says_so(tmp_path: Path) -> None:
    Writer(tmp_path).scalars("train_loss", [(0, 1.0), (1, 0.5)])
    story = read(tmp_path)
    assert not story.has_data
    assert health_of(story).state == "none"
    assert story.tags.losses == ["train_loss"]


def test_files_from_before_there_were_records_are_read() -> None:
    story = read(OLD)
    assert not story.structured
    kinds = [record["kind"] for record in story.valid]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "first": 1,
        "change": 4,
        "drift": 4,
        "incident": 8,
        "note": 1,
    }
    rewound = [record for record in story.valid if record.get("what") == "rewound"]
    assert [record["step"] for record in rewound] == [46, 406]
    assert rewound[0]["cause"].startswith("loss 2.51 here")
    fall = next(r for r in story.valid if r["kind"] == "change" and r["new"] < 0.02)
    assert (fall["tag"], fall["parts"][0]["source"]) == ("lr-SGD", "DivergenceGuard")
    assert health_of(story).state == "ended"
    assert story.groups == [GROUP]


# thinning, health, imports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [5, 50, 1000])
def test_thinning_keeps_every_spike_and_every_step_within_a_bin(points: int) -> None:
    at = np.arange(100_000)
    values = np.where(at < 33_333, 1.0, 0.5)
    values[[70_000, 70_001]] = [9.0, -9.0]
    values[90_000:90_010] = np.nan
    few, kept, thinned = thin(at, values, points)
    assert thinned
    assert len(few) <= points
    assert {9.0, -9.0} <= set(kept)
    assert np.isnan(kept).any()
    width = 100_000 / (points // 5)
    drop = few[np.flatnonzero(kept == 0.5)[0]]
    assert 33_333 <= drop <= 33_333 + width
    assert (few[0], few[-1]) == (0, 99_999)


def test_a_range_has_one_point_beyond_each_edge() -> None:
    at = np.arange(0, 100, 10)
    assert thin(at, at / 1.0, 100, 35, 55)[0].tolist() == [30, 40, 50, 60]
    assert thin(at, at / 1.0, 100, 41, 42)[0].tolist() == [40, 50]
    assert thin(at, at / 1.0, 100)[0].tolist() == at.tolist()
    assert thin(at[:0], at[:0] / 1.0, 100)[0].tolist() == []


def told(folder: Path, *extra: tuple[int, dict[str, Any]], losses: Any = None, end: bool = False) -> Any:
    # as if written just now
    writer = Writer(folder, time.time() - 500.0).record(0, **RUN)
    writer.scalars("lr-SGD", [(step, 0.1) for step in range(0, 1000, 3)])
    writer.scalars("train_loss", losses or [(step, 1.0 / (1 + step)) for step in range(0, 1000, 10)])
    for step, fields in extra:
        writer.record(step, **fields)
    if end:
        writer.record(1000, **END)
    return health_of(read(folder))


@pytest.mark.parametrize(
    ("extra", "state"),
    [
        ([], "healthy"),
        ([(500, {**HURT, "what": "rewound"})], "healthy"),
        ([(990, {**HURT, "what": "rewound"})], "trouble"),
        ([(990, {**HURT, "what": "dropped"})], "watch"),
        ([(step, {**HURT, "what": "dropped"}) for step in (990, 992, 994)], "trouble"),
        ([(990, {**HURT, "what": "limited"})], "healthy"),
        ([(step, {**HURT, "what": "limited"}) for step in range(980, 1000)], "watch"),
        ([(990, {**HURT, "what": "gave up"})], "trouble"),
    ],
)
def test_the_state_says_what_a_look_at_the_run_would(tmp_path: Path, extra: Any, state: str) -> None:
    assert told(tmp_path, *extra).state == state


def test_a_loss_that_is_not_finite_or_has_not_fallen_is_no_health(tmp_path: Path) -> None:
    broken = [(step, 1.0 if step < 500 else math.nan) for step in range(0, 1000, 10)]
    found = told(tmp_path / "nan", losses=broken)
    assert found.state == "trouble"
    assert "train_loss is nan since step 500" in found.sentence
    found = told(tmp_path / "flat", losses=[(step, 1.0) for step in range(0, 1000, 10)])
    assert found.state == "watch"
    assert "has not fallen" in found.sentence
    assert told(tmp_path / "end", losses=broken, end=True).state == "failed"


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ({"status": "finished"}, "Finished at step 100, healthy: lr-SGD at 0.1"),
        ({"status": "interrupted"}, "Interrupted at step 100, healthy: "),
        ({"status": "failed", "error": "KeyError: x"}, "Failed at step 100: KeyError: x. Healthy until then: "),
    ],
)
def test_the_sentence_says_how_a_run_ended(tmp_path: Path, end: dict[str, Any], words: str) -> None:
    run(tmp_path).record(100, **{**END, **end})
    assert health_of(read(tmp_path)).sentence.startswith(words)


def test_the_sentence_has_what_makes_the_rate(tmp_path: Path) -> None:
    writer = Writer(tmp_path, time.time()).record(0, **RUN)
    writer.scalars("lr-SGD", [(0, 0.1), (40, 0.1), (41, 0.05), (200, 0.05)])
    writer.scalars("lr-factor/DivergenceGuard", [(0, 1.0), (40, 1.0), (41, 0.5), (200, 0.5)])
    part = {"source": "DivergenceGuard", "old": 1.0, "new": 0.5, "reason": "the weights are to blame"}
    writer.record(41, kind="change", **GROUP, old=0.1, new=0.05, parts=[part], cause="c")
    found = health_of(read(tmp_path))
    assert found.sentence == (
        "Healthy: lr-SGD at 0.05 = 0.1 (the optimizer's own) x 0.5 (DivergenceGuard, since step 41: the weights are to "
        "blame); no incidents."
    )
    assert found.factors == {"DivergenceGuard": pytest.approx(0.5)}


def test_a_schedule_is_seen_without_a_monitor_too(tmp_path: Path) -> None:
    writer = Writer(tmp_path).record(0, **RUN).scalars("lr-SGD", [(0, 0.1), (10, 0.05), (20, 0.01)])
    writer.scalars("lr-factor/DivergenceGuard", [(0, 1.0), (10, 0.5)])
    assert "lr-SGD at 0.01 = 0.02 (scheduler) x 0.5 (DivergenceGuard)" in health_of(read(tmp_path)).sentence


def test_neither_torch_nor_lightning_is_imported() -> None:
    names = "story, report.cli, report.terminal, report.html_page, report.json_report, record.records"
    code = (
        "import sys\n"
        f"for name in {names.split(', ')!r}: __import__('lightning_lr.' + name)\n"
        "heavy = {'torch', 'lightning', 'pytorch_lightning', 'matplotlib', 'tensorflow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


def story_of(folder: Path) -> Story:
    story = Story(str(folder), "run")
    story.refresh()
    return story


def test_a_loss_that_is_lost_without_a_guard_has_a_note_where_it_was_lost(tmp_path: Path) -> None:
    losses = [1.0, float("nan"), 0.9, float("nan"), float("inf")]
    write(tmp_path, **{"lr-SGD": [0.1] * 5, "train_loss": losses})
    story = story_of(tmp_path)
    assert [r for r in story.records if r["kind"] == "note"] == [
        {"kind": "note", "source": "", "what": "lost", "step": 3, "words": "train_loss is nan from here on"}
    ]
    assert "incidents" not in health_of(story).sentence


@pytest.mark.parametrize("long", [False, True])
def test_a_rate_that_is_zero_long_before_the_end_is_to_be_looked_at(long: bool, tmp_path: Path) -> None:
    end = {**END, "step": 100}
    zeros = 40 if long else 1
    write(tmp_path, [end], **{"lr-SGD": [0.1] * (100 - zeros) + [0.0] * zeros})
    said = health_of(story_of(tmp_path))
    assert said.state == ("watch" if long else "ended")
    assert ("every rate is 0 since step 60" in said.sentence) == long


def test_a_plateau_that_took_the_rate_away_is_to_be_looked_at(tmp_path: Path) -> None:
    run = {**RUN, "step": 0, "callbacks": [{"name": "Mine", "written": "PlateauDecay(name='Mine')"}]}
    factors = {"lr-factor__Mine": [0.5**k for k in range(12)]}
    write(
        tmp_path, [run, {**END, "step": 11}], begins=False, **{"lr-SGD": [0.1 * 0.5**k for k in range(12)]}, **factors
    )
    assert "Mine has taken the rate down to 0.0005 times what it was" in health_of(story_of(tmp_path)).sentence


def test_a_resumption_says_where_and_how_the_part_before_had_ended(tmp_path: Path) -> None:
    failed = {**END, "step": 80, "status": "failed", "error": "RuntimeError: of the user's own"}
    write(tmp_path, [failed], **{"lr-SGD": [0.1] * 80})
    again = {**RUN, "step": 50, "resumed": True}
    write(tmp_path, [again, {**END, "step": 100}], begins=False, at=50, **{"lr-SGD": [0.1] * 50})
    (remark,) = story_of(tmp_path).remarks
    assert remark == (
        "the run was resumed at step 50 (it had failed at step 80: RuntimeError: of the user's own): what it has made "
        "anew replaces what was there"
    )
