"""The backend of TensorBoard's tab: what it answers, to whom it says no, and what it survives."""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from werkzeug.test import Client

from lightning_lr.tensorboard import files
from lightning_lr.tensorboard.folders import Roots
from lightning_lr.tensorboard.plugin import LearningRates, Tab
from lightning_lr.tensorboard.routes import Routes
from lightning_lr.tensorboard.story_cache import StoryCache
from tests.eventfiles import TAG, change, write


class Served:
    """The plugin's routes over the folders in `root`, as a client asks them."""

    def __init__(self, root: Path) -> None:
        self.shelf = StoryCache(lambda: {p.name: str(p) for p in root.iterdir() if p.is_dir()})
        self.apps = Routes(self.shelf).apps()

    def get(self, route: str, status: int = 200, **query: Any) -> Any:
        answer = Client(self.apps[f"/{route}"]).get(f"/{route}", query_string=query)
        assert answer.status_code == status, answer.text
        return json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    def runs(self) -> dict[str, Any]:
        for _ in range(200):
            found = {run["name"]: run for run in self.get("runs")["runs"]}
            if not any(run.get("reading") for run in found.values()):
                return found
            threading.Event().wait(0.05)
        raise AssertionError("they are still being read")


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


# what it answers -----------------------------------------------------------------------------------------------------


def test_each_run_has_a_sentence_and_the_tags_to_ask_for(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", [change(5, 0.1, 0.05)], **{"lr-SGD": [0.1] * 5 + [0.05] * 5, "train_loss": [1.0] * 10})
    run = served.runs()["one"]
    assert run["now"]["sentence"]
    assert (run["rate_tags"], run["loss_tags"], run["last_step"]) == ([TAG], ["train_loss"], 9)


def test_no_step_of_a_long_series_is_lost(served: Served, tmp_path: Path) -> None:
    values = [0.1] * 20_000
    values[12_345] = 0.7
    write(tmp_path / "one", **{"lr-SGD": values})
    found = served.get("series", run="one", tag=TAG, points=100)
    steps, shown = found["series"][TAG].values()
    assert found["thinned"]
    assert len(steps) <= 102
    assert [step for step, value in zip(steps, shown, strict=True) if value > 0.5] == [12_345]


def test_a_range_has_all_its_points_and_the_ones_beside_it(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", **{"lr-SGD": [0.1 + step for step in range(1000)]})
    found = served.get("series", run="one", tag=TAG, **{"from": 500, "to": 510})
    assert found["series"][TAG]["steps"] == list(range(499, 512))
    assert not found["thinned"]


def test_what_is_not_finite_is_told_as_json_can(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", train_loss=[1.0, float("nan"), float("inf"), float("-inf")])
    assert served.get("series", run="one", tag="train_loss")["series"]["train_loss"]["values"] == [
        1,
        None,
        "inf",
        "-inf",
    ]


def test_many_alike_are_one_mark_with_a_count_and_none_is_lost(served: Served, tmp_path: Path) -> None:
    many = [change(step, 0.1, 0.1 + step * 1e-6) for step in range(1, 10_001)]
    write(tmp_path / "one", [*many, change(10_001, 0.2, 0.1, "DivergenceGuard")])
    found = served.get("records", run="one", limit=5)
    assert sum(mark["count"] for mark in found["marks"]) == 10_001
    assert len(found["marks"]) <= 210
    assert [mark["cause"] for mark in found["marks"] if mark["count"] == 1][-1] == "DivergenceGuard"
    assert [record["step"] for record in found["records"]] == [9997, 9998, 9999, 10_000, 10_001]
    assert found["left_out"] == 10_002 - 5


def test_the_records_behind_a_mark_can_be_asked_for(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", [change(5, 0.1, 0.05), change(7, 0.05, 0.1, "DivergenceGuard"), change(9, 0.1, 0.2)])
    found = served.get("records", run="one", cause="PlateauDecay", kind="change", **{"from": 6, "to": 9})
    assert [record["step"] for record in found["records"]] == [9]


def test_heat_has_a_row_for_each_module_and_no_row_without_points(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", **{"lr-update__all": [1e-3] * 50, "lr-update__head": [1e-2] * 50})
    write(tmp_path / "two")
    found = served.get("heat", run="one")
    assert found["modules"] == ["lr-update/all", "lr-update/head"]
    assert np.allclose(found["values"], [[-3.0] * 50, [-2.0] * 50])
    assert served.get("heat", run="two")["modules"] == []


def test_answers_are_compressed_where_that_is_taken(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one")
    answer = Client(served.apps["/runs"]).get("/runs", headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    plotly = Client(served.apps["/plotly.js"]).get("/plotly.js", headers={"Accept-Encoding": "gzip"})
    assert len(plotly.data) < 2_000_000 < len(files.plotly_text())


# to whom it says no --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "query", "status", "words"),
    [
        ("series", {}, 400, "run must be given, got none"),
        ("series", {"run": "none"}, 404, "run must be one of this TensorBoard's with our data, got 'none'"),
        ("series", {"run": "one", "tag": "none"}, 404, "tag must be one of the run's, got 'none'"),
        ("series", {"run": "one", "points": "many"}, 400, "points must be a whole number from 10 to 5000, got 'many'"),
        ("series", {"run": "one", "points": "1000000"}, 400, "from 10 to 5000, got '1000000': leave it out for 1000"),
        ("series", {"run": "one", "from": "1.5"}, 400, "from must be a step, a whole number, got '1.5'"),
        ("series", {"run": "one", "to": "9" * 30}, 400, "to must be a step"),
        ("series", {"run": "one", "from": "9", "to": "3"}, 400, "from must be at most to, got 9 and 3: swap them"),
        ("series", {"run": "one", "tag": ["x"] * 65}, 400, "tag may be given 64 times at most, got 65"),
        ("records", {"run": "one", "limit": "-1"}, 400, "limit must be a whole number from 0 to 2000, got '-1'"),
        ("records", {"run": "one", "bins": "0"}, 400, "bins must be a whole number from 10 to 1000, got '0'"),
        ("heat", {"run": "one", "columns": "x"}, 400, "columns must be a whole number from 10 to 1000, got 'x'"),
        ("finding", {}, 400, "run must be given"),
    ],
)
def test_a_bad_request_is_told_the_bound_the_value_and_the_remedy(
    served: Served, tmp_path: Path, route: str, query: dict[str, Any], status: int, words: str
) -> None:
    write(tmp_path / "one")
    found = served.get(route, status, **query)
    assert words in found["error"]
    assert found["status"] == status


def test_an_error_of_our_own_is_a_sentence_too(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one")
    served.runs()
    monkeypatch.setattr(served.shelf, "runs", lambda: 1 / 0)
    assert "ZeroDivisionError: division by zero" in served.get("runs", 500)["error"]


@pytest.mark.parametrize("name", ["../plugin.py", "..%2fplugin.py", "none.js", "", "plugin.py"])
def test_no_other_file_is_served(served: Served, name: str) -> None:
    assert Client(served.apps["/static/*"]).get(f"/static/{name}").status_code == 404
    assert files.static(name) is None


# what it survives ----------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_read_on(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "one", **{"lr-SGD": [0.1] * 5})
    assert served.runs()["one"]["last_step"] == 4
    write(tmp_path / "one", [change(50, 0.1, 0.05)])
    for _ in range(100):
        if served.runs()["one"]["last_step"] == 50:
            return
        threading.Event().wait(0.05)
    raise AssertionError("the new file was not read")


def test_bad_files_and_strange_names_break_nothing(served: Served, tmp_path: Path) -> None:
    long = "x" * 500
    write(tmp_path / "long", **{f"loss_{long}": [1.0, 2.0], "lr-SGD": [0.1]})
    write(tmp_path / "damaged", [change(5, 0.1, 0.05)], **{"lr-SGD": [0.1] * 100})
    (file,) = (tmp_path / "damaged").iterdir()
    file.write_bytes(file.read_bytes()[:-500] + b"x" * 500)
    (tmp_path / "empty").mkdir()
    runs = served.runs()
    assert runs["damaged"]["has_data"]
    assert any("damage" in remark or "byte" in remark for remark in runs["damaged"]["remarks"])
    assert not runs["empty"]["has_data"]
    assert served.get("series", run="long", tag=f"loss_{long}")["series"]


def test_an_empty_folder_has_no_runs(served: Served) -> None:
    assert served.get("runs")["runs"] == []


def test_two_hundred_runs_asked_from_many_threads(served: Served, tmp_path: Path) -> None:
    for i in range(200):
        write(tmp_path / f"run{i}", [change(5, 0.1, 0.05)], **{"lr-SGD": [0.1] * 10})
    wrong: list[BaseException] = []

    def ask(i: int) -> None:
        try:
            served.get("runs")
            assert served.get("series", run=f"run{i}", tag=TAG)["series"][TAG]["steps"] == list(range(10))
            assert served.get("records", run=f"run{i}")["marks"]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(0, 200, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(served.runs()) == 200


# in TensorBoard ------------------------------------------------------------------------------------------------------


class Provider:
    """As much of a data provider as the plugin asks."""

    def __init__(self, listed: dict[str, Any]) -> None:
        self.listed, self.asked = listed, 0

    def list_tensors(self, context: Any, *, experiment_id: str, plugin_name: str) -> dict[str, Any]:
        self.asked += 1
        return self.listed.get(plugin_name, {})


class Context:
    def __init__(self, provider: Any, logdir: str = "", learning_rates: str = "true") -> None:
        self.data_provider, self.logdir = provider, logdir
        self.flags = argparse.Namespace(logdir=logdir, logdir_spec="", learning_rates=learning_rates)


@pytest.mark.parametrize(
    ("listed", "active"),
    [
        ({}, False),
        ({"text": {"run": {"notes/text_summary": None}}}, False),
        ({"text": {"run": {"lr-events/text_summary": None}}}, True),
        ({"lightning_lr": {"run": {"lightning_lr/records": None}}}, True),
    ],
)
def test_the_tab_is_there_where_tensorboard_knows_a_run_with_our_data(
    listed: dict[str, Any], active: bool, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    provider = Provider(listed)
    tab = Tab(Context(provider, str(tmp_path)))  # type: ignore[arg-type]
    assert [tab.is_active() for _ in range(50)] == [active] * 50
    # TensorBoard asks each time the page is loaded
    assert provider.asked <= 2


def test_the_tab_is_there_before_tensorboard_has_read_the_run(tmp_path: Path) -> None:
    writer = EventFileWriter(str(tmp_path / "other"))
    one = Summary(value=[Summary.Value(tag="loss", simple_value=1.0)])
    writer.add_event(Event(step=0, wall_time=1.0, summary=one))
    writer.close()
    assert not Tab(Context(Provider({}), str(tmp_path))).is_active()  # type: ignore[arg-type]
    write(tmp_path / "deep" / "down")
    tab = Tab(Context(Provider({}), str(tmp_path)))  # type: ignore[arg-type]
    assert tab.is_active()
    assert {run["name"] for run in Routes(StoryCache(tab._runs.folders))._stories.runs()} == {"deep/down"}


def test_one_flag_takes_it_away() -> None:
    parser = argparse.ArgumentParser()
    LearningRates().define_flags(parser)
    assert parser.parse_args([]).learning_rates == "true"
    assert LearningRates().load(Context(None, learning_rates="false")) is None  # type: ignore[arg-type]
    assert LearningRates().load(Context(None)).frontend_metadata().tab_name == "Learning rates"  # type: ignore[arg-type]


def test_runs_are_found_by_tensorboards_names(tmp_path: Path) -> None:
    for name in (".", "a", "a/b"):
        (tmp_path / name).mkdir(exist_ok=True)
    listed = {name: {"lightning_lr/records": None} for name in (".", "a", "a/b", "gone")}
    found = Tab(Context(Provider({"lightning_lr": listed}), str(tmp_path)))._runs.folders()  # type: ignore[arg-type]
    assert found == {".": str(tmp_path), "a": str(tmp_path / "a"), "a/b": str(tmp_path / "a/b")}
    assert Roots(None, f"x:{tmp_path}/a").folder("x/b") == str(tmp_path / "a/b")
