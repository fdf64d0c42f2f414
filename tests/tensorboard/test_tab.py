"""TensorBoard's tab "Learning rates" as a user meets it: a real TensorBoard, real runs, a real browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pytest
from selenium.webdriver import ActionChains, Keys

from tests import rescued
from tests.browser import CHROMIUM, DRIVER, Board, Browser, until
from tests.eventfiles import TAG, change, write
from tests.pool import Pool

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver here, to look at the tab with"
)

TIMES = "\u00d7"
BACKBONE, HEAD = "lr-SGD/backbone", f"lr-SGD/{rescued.GROUP}"
MARKS = """const chart = document.querySelector('.timeline .chart');
return chart.data.filter((trace) => trace.mode === 'markers+text').flatMap((trace) =>
  trace.x.map((x, i) => (
    { x, y: trace.y[i], symbol: trace.marker.symbol, axis: trace.yaxis, colour: trace.marker.color })));"""


class Seen(NamedTuple):
    """A TensorBoard with the two runs, and what the monitor had said of the one with incidents."""

    board: Board
    logs: Path
    told: dict[str, Any]


@pytest.fixture(scope="module")
def board(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    scratch = tmp_path_factory.mktemp("tab")
    logs = scratch / "logs"
    healthy = pool.run(rescued.train, str(logs), "healthy", 2)[0]
    assert not healthy["counts"]["lost"]
    told = pool.run(rescued.train, str(logs), "rescued", 2)[0]
    assert told["counts"]["rewinds"] == 1
    running = Board(logs, scratch, "--load_fast=false")
    yield Seen(running.ready(), logs, told)
    running.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def page(board: Seen, browser: Browser) -> Browser:
    """The tab with the run in which everything happened."""
    browser.open(board.board)
    only(browser, "rescued")
    return browser


def only(browser: Browser, run: str) -> None:
    row = f"[...document.querySelectorAll('.runs li')].find((li) => li.querySelector('.name').textContent === '{run}')"
    browser.js(f"{row}.querySelector('.only').click()")
    browser.wait("document.querySelector('.finder .chart')?.data !== undefined") if run == "rescued" else None


def elsewhere(browser: Browser, board: Board) -> list[str]:
    """Requests to other hosts than the board's since the page was opened."""
    asked = browser.requests()
    assert any("plotly.js" in url for url in asked)
    return [url for url in asked if urlsplit(url).netloc != urlsplit(board.address).netloc]


def place(browser: Browser, x: float, y: float, axis: str) -> tuple[float, float]:
    """Where a point of the chart lies, from its middle, in pixels."""
    return browser.js(
        """const chart = document.querySelector('.timeline .chart');
        const [x, y, axis] = arguments;
        const full = chart._fullLayout;
        const vertical = full[axis.replace('y', 'yaxis')];
        chart.scrollIntoView({ block: 'center' });
        return [full.xaxis._offset + full.xaxis.d2p(x) - chart.clientWidth / 2,
                vertical._offset + vertical.d2p(y) - chart.clientHeight / 2];""",
        x,
        y,
        axis,
    )


def move(browser: Browser, mark: dict[str, Any]) -> ActionChains:
    chart = browser.driver.find_element("css selector", ".timeline .chart")
    x, y = place(browser, mark["x"], mark["y"], mark["axis"])
    # plotly has seen no mouse yet, and wants it to move
    return ActionChains(browser.driver, 50).move_to_element_with_offset(chart, x - 4, y).move_by_offset(4, 0).pause(0.1)


# what it shows -------------------------------------------------------------------------------------------------------


def test_it_opens_without_a_complaint_and_asks_no_other_host(page: Browser, board: Seen) -> None:
    sentences = page.texts(".runs .sentence")
    assert len(sentences) == 2
    assert all("0.1" in sentence for sentence in sentences)
    assert len(page.js(MARKS)) > 15
    assert page.texts(".finder h2") == ["The finder"]
    page.wait("document.querySelector('.heat .chart')?.data?.[0].z.length === 3")
    assert page.complaints() == []
    assert elsewhere(page, board.board) == []


def test_the_rates_are_those_of_the_monitor(page: Browser, board: Seen) -> None:
    lines = page.js(
        """return document.querySelector('.timeline .chart').data
        .filter((trace) => trace.mode === 'lines' && trace.line.shape === 'hv').map((trace) => [trace.x, trace.y])"""
    )
    assert len(lines) == 2
    for group, (steps, values) in zip(("backbone", rescued.GROUP), lines, strict=True):
        changes = [told for told in board.told["changes"] if told["group"] == group]
        assert len(changes) > 25
        for told in changes:
            at = np.searchsorted(steps, told["step"], "right") - 1
            assert steps[at] == told["step"]
            assert values[at] == pytest.approx(told["new"], rel=1e-6)
            assert values[at - 1] == pytest.approx(told["old"], rel=1e-6)


def test_what_the_records_say_has_a_mark(page: Browser, board: Seen) -> None:
    marks = page.js(MARKS)
    counts = board.told["counts"]
    for symbol, count in {"star": counts["rewinds"], "x": 2, "diamond": 2, "square": 2, "diamond-open": 1}.items():
        assert sum(mark["symbol"] == symbol for mark in marks) == count, symbol
    chips = page.texts(".choices .chip")
    assert any(chip.endswith(f"DivergenceGuard: dropped ({counts['dropped']})") for chip in chips)
    rows = page.texts(".table tbody tr")
    assert any("the weights are to blame" in row for row in rows)


def test_under_the_mouse_a_mark_says_its_cause_and_a_click_all_else(page: Browser) -> None:
    marks = page.js(MARKS)
    decay = next(mark for mark in marks if mark["symbol"] == "square")
    move(page, decay).perform()
    tip = page.wait("!document.querySelector('.tip').hidden && document.querySelector('.tip').textContent")
    assert "PlateauDecay" in tip
    assert "is no better than" in tip
    assert "0.144 → 0.072" in tip
    dropped = [mark for mark in marks if mark["symbol"] == "x"][-1]
    move(page, dropped).click().perform()
    page.wait("document.querySelector('.detail dl')")
    facts = page.js(
        """return Object.fromEntries([...document.querySelectorAll('.detail dt')]
        .map((dt) => [dt.textContent, dt.nextSibling.textContent]))"""
    )
    assert facts["loss"] == "nan"
    assert facts["fault on rank"] == "1"
    assert {"update", "epoch", "batch", "gradient norm", "cause", "not finite"} <= set(facts)


def test_between_marks_it_says_what_holds_there(page: Browser) -> None:
    x, y = place(page, 300, 0.02, "y")
    chart = page.driver.find_element("css selector", ".timeline .chart")
    ActionChains(page.driver, 50).move_to_element_with_offset(chart, x - 3, y).move_by_offset(3, 0).perform()
    tip = page.wait("!document.querySelector('.tip').hidden && document.querySelector('.tip').textContent")
    assert f"DivergenceGuard{TIMES}0.125" in tip
    assert f"PlateauDecay{TIMES}0.5" in tip
    assert f"{BACKBONE}0.009" in tip


# what can be chosen --------------------------------------------------------------------------------------------------


def test_a_cause_can_be_hidden(page: Browser) -> None:
    rows = page.texts(".table tbody tr")
    page.click(".chip", "PlateauDecay")
    page.wait("!document.querySelector('.timeline .chart').data.some((trace) => trace.marker?.symbol === 'square')")
    left = page.texts(".table tbody tr")
    assert left == [row for row in rows if "PlateauDecay (" not in row and "■" not in row]
    assert len(left) < len(rows)
    page.click(".chip", "PlateauDecay")
    page.wait("document.querySelector('.timeline .chart').data.some((trace) => trace.marker?.symbol === 'square')")


def test_a_group_can_be_hidden(page: Browser) -> None:
    page.click(".chip", "backbone")
    lines = "document.querySelector('.timeline .chart').data.filter((trace) => trace.line?.shape === 'hv').length"
    page.wait(f"{lines} === 1")
    assert not any("SGD/backbone" in row for row in page.texts(".table tbody tr"))


def test_runs_can_be_compared(page: Browser) -> None:
    page.click(".runs label", "healthy")
    page.wait(
        "document.querySelector('.timeline .chart').data.filter((trace) => trace.line?.shape === 'hv').length === 4"
    )
    assert len({mark["colour"] for mark in page.js(MARKS)}) == 2
    assert any("healthy" in row for row in page.texts(".table tbody tr"))
    only(page, "healthy")
    page.wait(
        "document.querySelector('.timeline .chart').data.filter((trace) => trace.line?.shape === 'hv').length === 2"
    )
    page.wait("!document.querySelector('.finder .chart')")
    assert not any(mark["symbol"] == "star" for mark in page.js(MARKS))


def test_zoomed_in_all_charts_show_the_range_and_finer_data_is_fetched(page: Browser) -> None:
    page.requests()
    page.click(".tools button", "+")
    page.wait("document.querySelector('.timeline .chart').layout.xaxis.range[0] === 120")
    page.wait("document.querySelector('.heat .chart').layout.xaxis.range[1] === 360")
    page.wait("document.querySelector('.tools .hint').textContent === 'steps 120 to 360'")
    assert any("series?" in url and "from=0&to=480" in url for url in page.requests())
    page.click(".tools button", "whole run")
    page.wait("document.querySelector('.timeline .chart').layout.xaxis.range[1] > 480")


def test_the_keyboard_reaches_every_mark_and_comes_back(page: Browser) -> None:
    page.js("document.querySelector('.scroll').focus()")
    keys = ActionChains(page.driver)
    keys.send_keys(Keys.TAB).send_keys(Keys.ENTER).perform()
    page.wait("document.activeElement.matches('.detail h3') && document.querySelector('.detail article')")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert page.wait("document.querySelector('.detail').hidden && document.activeElement.matches('.table button')")


def test_names_are_shown_as_they_are_and_never_as_markup(page: Browser) -> None:
    assert f"{HEAD}" in page.texts(".choices .chip")
    assert page.js("return document.querySelectorAll('[onclick]').length") == 0
    # in plotly's own texts too
    page.click(".runs label", "healthy")
    page.wait(
        "document.querySelector('.timeline .chart').data.filter((trace) => trace.line?.shape === 'hv').length === 4"
    )
    assert any(rescued.GROUP in row for row in page.texts(".table tbody tr"))
    assert page.js("return document.querySelectorAll('[onclick]').length") == 0


# where it runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def elsewhere_served(board: Seen, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Board, Path]]:
    """Another TensorBoard, under a prefix and with the fast loader, and its folder: the same run, and one to be."""
    scratch = tmp_path_factory.mktemp("other")
    logs = scratch / "logs"
    shutil.copytree(board.logs / "rescued", logs / "rescued")
    write(logs / "live", **{TAG: [0.1] * 100})
    running = Board(logs, scratch, prefix="/some/where")
    yield running.ready(), logs
    running.close()


def test_it_works_under_a_prefix_with_the_fast_loader_in_the_dark_and_in_a_narrow_window(
    elsewhere_served: tuple[Board, Path], browser: Browser
) -> None:
    other, _ = elsewhere_served
    until(lambda: other.get("plugins_listing")["lightning_lr"]["enabled"], "the tab is active")
    try:
        dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
        browser.driver.set_window_size(600, 1000)
        browser.open(other)
        only(browser, "rescued")
        browser.wait("document.querySelector('#page').dataset.theme === 'dark'")
        assert browser.js("return document.documentElement.scrollWidth <= window.innerWidth")
        assert browser.js(MARKS)
        assert browser.complaints() == []
        assert elsewhere(browser, other) == []
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.driver.set_window_size(1300, 1400)


def test_it_goes_on_with_the_run_keeps_the_zoom_and_rests_while_nobody_looks(
    elsewhere_served: tuple[Board, Path], browser: Browser
) -> None:
    other, logs = elsewhere_served
    browser.open(other)
    only(browser, "live")
    browser.wait("document.querySelector('.tools .hint').textContent === 'steps 0 to 99'")
    browser.click(".tools button", "+")
    browser.wait("document.querySelector('.tools .hint').textContent === 'steps 24 to 75'")
    write(logs / "live", [change(150, 0.1, 0.05)], at=100, begins=False, **{TAG: [0.1] * 50 + [0.05]})
    browser.wait("document.querySelector('.table summary').textContent.includes('(0)')")
    browser.wait(
        """[...document.querySelectorAll('.runs li')].find((li) => li.textContent.includes('live'))
        .querySelector('.sentence').textContent.includes('0.05')"""
    )
    assert browser.texts(".tools .hint") == ["steps 24 to 75"]
    browser.click(".tools button", "whole run")
    browser.wait("document.querySelector('.tools .hint').textContent === 'steps 0 to 150'")
    browser.wait("document.querySelector('.timeline .chart').data.some((trace) => trace.marker?.symbol === 'square')")
    browser.driver.switch_to.default_content()
    tabs = browser.driver.find_elements("css selector", "[role=tab]")
    next(tab for tab in tabs if "TEXT" in tab.text.upper()).click()
    until(lambda: browser.js("return location.hash") == "#text", "another tab")
    time.sleep(0.5)
    browser.requests()
    time.sleep(3.5)
    assert not [url for url in browser.requests() if "lightning_lr" in url]
