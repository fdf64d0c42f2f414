"""The report: what somebody sees in a terminal, in JSON and in a page, and what the exit code says."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from lightning_lr.report.bundle import bundle
from lightning_lr.report.cli import main
from lightning_lr.report.sparkline import sparkline
from lightning_lr.report.tables import changes
from lightning_lr.report.terminal import show
from lightning_lr.story import Story
from lightning_lr.tensorboard.files import STATIC
from tests.eventfiles import END, GROUP, HURT, RUN, TAG, Writer, run, write

OLD = Path(__file__).parent.parent / "old"
ROOT = Path(__file__).parent.parent.parent

MARKUP = "[bold]<b onclick=alert(1)>&amp;</script><script>alert(2)</script>\x1b[31m"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def change(step: int, old: float, new: float, source: str = "DivergenceGuard", reason: str = "why") -> dict[str, Any]:
    part = {"source": source, "old": old, "new": new, "reason": reason}
    return {"kind": "change", **GROUP, "old": old, "new": new, "parts": [part], "cause": reason, "step": step}


def test_a_run_is_told_in_a_sentence_a_table_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = run(tmp_path).record(**change(50, 0.1, 0.05, reason="the weights are to blame"))
    writer.record(50, **HURT, what="rewound").record(60, **HURT, what="dropped").record(61, **HURT, what="dropped")
    writer.record(100, **END)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("Finished at step 100, healthy: lr-SGD at 0.1")
    assert re.search(r"50 +0.1 +→ +0.05 +DivergenceGuard x 0.1 -> x 0.05: the weights are to blame", said)
    assert re.search(r"dropped +2 +60 to 61 +the loss is not finite", said)
    assert re.search(r"train_loss +[▁▂▃▄▅▆▇█ ]+ +0.02 to 2, now 0.02", said)


def test_the_most_important_changes_are_shown_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = run(tmp_path)
    for step in range(40):
        writer.record(**change(step, 0.1, 0.1 * 0.99, "scheduler", ""))
    writer.record(**change(77, 0.1, 0.001, reason="the large one"))
    main(["report", str(tmp_path)])
    said = capsys.readouterr().out
    assert "the large one" in said
    assert "and 21 more changes" in said
    main(["report", str(tmp_path), "--all"])
    said = capsys.readouterr().out
    assert said.count("scheduler 0.1") == 40
    assert "more changes" not in said


def test_the_first_changes_of_a_drift_stand_in_its_own_row(tmp_path: Path) -> None:
    writer = run(tmp_path)
    for step in (10, 11, 12):
        writer.record(**change(step, 0.1, 0.09, "scheduler", ""))
    fields = {"source": "scheduler", "first": 0.1, "last": 0.01, "changes": 40, "start": 10, "end": 50}
    writer.record(52, kind="drift", **GROUP, **fields)
    story = Story(str(tmp_path))
    story.refresh()
    rows, left = changes(story)
    assert [(row.steps, row.old, row.new) for row in rows] == [("10 to 50", "0.1", "0.01")]
    assert left == 0


def test_what_happens_to_all_groups_at_once_is_one_row(tmp_path: Path) -> None:
    other = {"tag": "lr-SGD/pg2", "optimizer": "SGD", "group": "pg2"}
    writer = run(tmp_path).record(0, **{**RUN, "groups": [GROUP, other]})
    for group, old in ((GROUP, 0.1), (other, 0.01)):
        part = {"source": "PlateauDecay", "old": 1.0, "new": 0.5, "reason": "why"}
        writer.record(9, kind="change", **group, old=old, new=old / 2, parts=[part], cause="c")
    writer.record(20, kind="change", **other, old=0.01, new=0.001, parts=[{**part, "new": 0.1}], cause="c")
    story = Story(str(tmp_path))
    story.refresh()
    assert [(row.steps, row.group) for row in changes(story)[0]] == [("9", "all"), ("20", "lr-SGD/pg2")]


def seen(folder: Path) -> Story:
    story = Story(str(folder), folder.name)
    story.refresh()
    return story


def test_a_change_by_hand_is_no_schedulers(tmp_path: Path) -> None:
    writer = run(tmp_path).record(0, **{**RUN, "groups": [{**GROUP, "scheduled": False}]})
    writer.record(**change(30, 0.1, 0.5, "scheduler", ""))
    drift = {"source": "scheduler", "first": 0.5, "last": 0.1, "changes": 9, "start": 40, "end": 50}
    writer.record(52, kind="drift", **GROUP, **drift)
    assert [row.cause for row in changes(seen(tmp_path))[0]] == [
        "the optimizer's own rate 0.1 -> 0.5",
        "the optimizer's own rate, 9 changes",
    ]


def test_where_a_loss_went_for_good_has_a_row(tmp_path: Path) -> None:
    run(tmp_path).scalars("train_loss", [(step, math.nan) for step in range(100, 110)])
    (row,) = changes(seen(tmp_path))[0]
    assert (row.steps, row.cause) == ("100", "train_loss is nan from here on")


def test_many_first_rates_hide_no_change(tmp_path: Path) -> None:
    groups = [{"tag": f"lr-SGD/pg{i}", "optimizer": "SGD", "group": f"pg{i}"} for i in range(30)]
    writer = run(tmp_path).record(0, **{**RUN, "groups": groups})
    for i, group in enumerate(groups):
        writer.record(0, kind="first", **group, new=0.1 / (1 + i), parts=[])
    writer.record(**{**change(50, 0.1, 0.01, reason="the large one"), **groups[0]})
    assert "the large one" in changes(seen(tmp_path))[0][-1].cause


def test_incidents_have_words_in_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        writer = run(tmp_path / name).record(9, **HURT, what="trial data").record(10, **HURT, what="rewound")
        writer.record(10, **HURT, what="rewound").record(100, **END)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 rewinds, 1 trial that blamed the data" in said
    assert re.search(r"^ +rewinds +2 +10 ", said, re.MULTILINE)
    assert "trial data" not in said


def test_half_a_file_is_told_where_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c", "d"):
        writer = run(tmp_path / name).record(100, **END)
        if name == "b":
            writer.path.write_bytes(writer.path.read_bytes()[:-7])
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^b: the file ends in the middle of a record", said, re.MULTILINE)
    assert not re.search(r"^[acd]: ", said, re.MULTILINE)


def test_several_runs_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run(tmp_path / name).record(100, **END)
    Writer(tmp_path / "c").scalar("train_loss", 0, 1.0)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    head = said.splitlines()
    assert re.match(r"run +state +step +rate +loss", head[0])
    assert re.match(r"a +ended +100 +0.1", head[1])
    assert re.match(r"b +ended +100 +0.1", head[2])
    assert "Nothing of lightning_lr in: c" in said
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["runs"]]
    assert names == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_two_hundred_runs_are_an_overview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(200):
        run(tmp_path / f"version_{i:03}", 2).record(2, **END)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) < 30
    assert "and 180 more runs" in said
    assert main(["report", str(tmp_path), "--run", "version_17?", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 10
    assert main(["report", str(tmp_path), "--html", str(tmp_path / "all.html")]) == 0
    assert (tmp_path / "all.html").stat().st_size < 10 * 2**20


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_names_with_markup_and_long_ones_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    tag = f"lr-{MARKUP}"
    group = {"tag": tag, "optimizer": MARKUP, "group": MARKUP}
    writer = Writer(tmp_path / "[red]<i>").record(0, **{**RUN, "groups": [group, {**GROUP, "tag": "x" * 500}]})
    writer.scalars(tag, [(0, 0.1), (1, 0.2)]).scalars("x" * 500, [(0, 0.1)]).scalar(f"loss {MARKUP}", 0, 1.0)
    writer.record(**{**change(1, 0.1, 0.2, MARKUP, MARKUP), "tag": tag}).record(1, **{**HURT, "what": MARKUP})
    run(tmp_path / "other")
    assert main(["report", str(tmp_path), "--all"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "[bold]" in re.sub(r"\s", "", said)
    assert "x" * 100 not in said
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path), "--html", str(page)]) == 0
    text = page.read_text()
    assert "onclick=alert(1)>" not in text
    assert text.count("<script") == text.count("</script>") == 3
    data = json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0])
    assert MARKUP in [one["group"] for r in data["runs"] for one in r["summary"]["groups"]]


def test_json_is_strict_and_has_a_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = run(tmp_path).scalar("train_loss", 100, math.nan).scalar("train_loss", 101, math.inf)
    writer.record(100, **HURT, what="dropped", loss=math.nan)
    assert main(["report", str(tmp_path), "--json"]) == 0

    def refuse(token: str) -> None:
        raise AssertionError(token)

    told = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert told["version"] == 1
    one = told["runs"][0]
    assert one["series"]["losses"]["train_loss"]["values"][-2:] == ["nan", "inf"]
    assert one["series"]["rates"]["lr-SGD"]["steps"] == list(range(100))
    assert one["now"]["troubles"] == ["train_loss is inf since step 100", "1 update dropped in the last 20 steps"]
    assert (one["incidents"][0]["what"], one["incidents"][0]["count"]) == ("dropped", 1)
    described = (ROOT / "docs" / "report.md").read_text()
    missing = [name for name in [*one, *one["now"]] if f"`{name}`" not in described]
    assert not missing


@pytest.mark.parametrize("name", ["none", "empty", "file"])
def test_nothing_to_read_is_exit_code_1_and_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert main(["report", str(tmp_path / name)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"lightning-lr: {tmp_path / name}")


def test_a_file_with_nothing_in_it_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.out.tfevents.1.host").write_bytes(b"no event file at all")
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "checksum is wrong at byte 0" in said.out
    assert "nothing in them that could be read" in said.err


@pytest.mark.parametrize(
    "arguments", [[], ["report"], ["report", "x", "--html"], ["report", "x", "--json", "--html", "y"]]
)
def test_wrong_arguments_are_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2


def test_a_run_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a")
    with pytest.raises(SystemExit) as error:
        main(["report", str(tmp_path), "--run", "b"])
    assert error.value.code == 2
    assert "no run has the name 'b'. There are: a" in capsys.readouterr().err


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = run(tmp_path / "damaged")
    damaged.path.write_bytes(damaged.path.read_bytes()[:2000] + b"damage" + damaged.path.read_bytes()[2006:])
    half = run(tmp_path / "half")
    half.path.write_bytes(half.path.read_bytes()[:-7])
    run(tmp_path / "now", time=time.time() - 100.0)
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"Note: .*checksum is wrong at byte", said)
    assert "Note: the file ends in the middle of a record" in said
    assert "It is still being written" in said


def test_old_files_have_a_report_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(OLD)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Fine until its last step, 480: lr-SGD at 9.64e-06 (scheduler); 2 rewinds, ")
    assert re.search(r"47 +0.8862 +→ +0.01147 +DivergenceGuard", said)


def test_a_terminal_without_unicode_gets_ascii(tmp_path: Path) -> None:
    writer = run(tmp_path).record(**change(50, 0.1, 0.05))
    story = Story(str(tmp_path))
    assert story.refresh()
    assert writer.path.exists()
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show([story], console=Console(file=out, width=80, markup=False, highlight=False))
    out.seek(0)
    assert "->" in out.read()


def test_a_spark_shows_a_step_a_gap_and_what_is_no_number() -> None:
    at = np.arange(10)
    step = np.where(at < 5, 1.0, 0.1)
    assert sparkline(at, step, 10, begin=0, end=9, lasting=True) == "█████▁▁▁▁▁"
    assert sparkline(at[[0, 9]], step[[0, 9]], 4, begin=0, end=9) == "█  ▁"
    holes = np.where(at == 4, np.nan, step)
    assert sparkline(at, holes, 10, begin=0, end=9)[4] == "\N{MULTIPLICATION SIGN}"
    assert sparkline(at, np.where(at < 5, 0.0, 0.1), 10, begin=0, end=9, log=True, lasting=True)[0] == "▁"


def test_a_spike_in_a_loss_flattens_nothing() -> None:
    at = np.arange(1000)
    loss = np.where(at == 500, 1e9, 1.0 - at / 1000)
    assert len(set(sparkline(at, loss, 40, begin=0, end=999))) == 8


def test_modules_with_equal_names_fit_in_one_script(tmp_path: Path) -> None:
    (tmp_path / "a.js").write_text("const FEW = 1;\nexport function one() { return FEW; }\n")
    (tmp_path / "b.js").write_text('import { one } from "./a.js";\nconst FEW = 2;\nexport const two = one() + FEW;\n')
    script = bundle(tmp_path, "b")
    assert "import" not in script
    assert "export" not in script
    assert script.index("$a = ") < script.index("$b = ")
    assert script.endswith("const { two } = $b;")
    page = bundle(STATIC, "page")
    assert not re.search(r"^(import|export) ", page, re.MULTILINE)


def test_it_starts_as_a_module(tmp_path: Path) -> None:
    run(tmp_path)
    command = [sys.executable, "-m", "lightning_lr", "report", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "lr-SGD at 0.1" in done.stdout


def test_where_schedule_and_callback_act_at_once_both_are_named_the_larger_first(tmp_path: Path, capsys: Any) -> None:
    parts = [
        {"source": "scheduler", "old": 0.01, "new": 1e-4, "reason": ""},
        {"source": "PlateauDecay", "old": 1.0, "new": 0.5, "reason": "no better"},
    ]
    both = {**change(40, 0.01, 5e-5), "parts": parts}
    write(tmp_path / "run", [both], **{TAG: [0.01] * 40 + [5e-5]})
    main(["report", str(tmp_path)])
    told = " ".join(capsys.readouterr().out.split())
    assert "scheduler 0.01 -> 0.0001; PlateauDecay x 1 -> x 0.5: no better" in told


def test_groups_that_begin_at_different_rates_have_a_row_each(tmp_path: Path, capsys: Any) -> None:
    tags = ["lr-SGD/a", "lr-SGD/b"]
    groups = [{"tag": tag, "optimizer": "SGD", "group": tag[-1]} for tag in tags]
    first = [
        {"kind": "first", "step": 0, "new": rate, "parts": [], "words": "w", **group}
        for rate, group in zip([0.1, 0.2], groups, strict=True)
    ]
    run = {**RUN, "step": 0, "groups": groups}
    write(tmp_path / "run", [run, *first], begins=False, **{tags[0]: [0.1] * 5, tags[1]: [0.2] * 5})
    main(["report", str(tmp_path)])
    out = capsys.readouterr().out
    assert [line.split()[1:3] for line in out.splitlines() if "first update" in line] == [
        ["lr-SGD/a", "0.1"],
        ["lr-SGD/b", "0.2"],
    ]


def test_of_many_runs_the_bad_ones_come_first_and_the_others_are_counted(tmp_path: Path, capsys: Any) -> None:
    for i in range(25):
        end = {**END, "step": 9} | ({"status": "failed", "error": "E: e"} if i > 20 else {})
        write(tmp_path / f"run{i:02}", [end], **{TAG: [0.1] * 10})
    main(["report", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:6]] == ["failed"] * 4 + ["ended"]
    assert "and 5 more runs (5 ended): --all shows them" in lines


def test_a_run_that_is_the_folder_itself_has_the_folders_name(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path / "version_7", **{TAG: [0.1] * 10})
    main(["report", str(tmp_path / "version_7"), "--json"])
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "version_7"


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    values = [0.1 + step for step in range(3000)]
    # more than a pipe holds
    write(tmp_path / "run", **dict.fromkeys((TAG, *(f"loss_{i}" for i in range(8))), values))
    command = f"{sys.executable} -m lightning_lr report {tmp_path} --json | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('{"version"', "")


def test_without_rich_the_terminals_report_says_what_it_needs(tmp_path: Path) -> None:
    write(tmp_path / "run", **{TAG: [0.1]})
    blocked = "import sys; sys.modules['rich'] = None; from lightning_lr.report.cli import main; sys.exit(main())"
    said = [
        subprocess.run([sys.executable, "-c", blocked, "report", tmp_path, *more], capture_output=True, text=True)
        for more in ([], ["--json"])
    ]
    assert [done.returncode for done in said] == [1, 0]
    assert said[0].stderr == (
        "lightning-lr: the report in the terminal needs rich: pip install rich (--html and --json don't)\n"
    )
