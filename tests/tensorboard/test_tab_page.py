"""Details of TensorBoard's tab, in a real browser, over small runs that are written at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Keys

from tests.browser import CHROMIUM, DRIVER, Board, Browser
from tests.eventfiles import END, TAG, change, write

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="there is no chromium with its chromedriver here, to look at the tab with"
)

LONG = "lr-SGD/" + "L" * 200 + "END"
NAN = math.nan
DONE = END | {"step": 80}
CHART = "document.querySelector('.timeline .chart')"
TIP = "document.querySelector('.tip')"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("page") / "logs"
    losses = [math.exp(-step / 20) + 0.01 for step in range(80)]
    to_zero = {TAG: [0.01] * 40 + [0.0] * 40, "train_loss": losses}
    write(logs / "zero", [change(40, 0.01, 0.0), DONE], **to_zero)
    cool = [0.02] * 60 + [0.02 * (80 - step) / 2000 for step in range(60, 79)] + [1e-12]
    write(logs / "cool", [DONE], **{TAG: cool, "train_loss": [*losses[:50], 1e9, *losses[51:]]})
    write(logs / "nan", [DONE], **{TAG: [0.1] * 80, "train_loss": [1.0] * 30 + [NAN] * 50})
    write(logs / "short", [END | {"step": 2}], **{TAG: [0.1] * 3, "train_loss": [1.0, 0.9, 0.8]})
    write(logs / "names", [DONE], **{TAG: [0.1] * 80, LONG: [0.2] * 80})
    write(logs / "live", [change(step, 0.1, 0.05) for step in (5, 40)], **{TAG: [0.1] * 80})
    write(logs / "z-failed", [DONE | {"status": "failed", "error": "ValueError: x"}], **{TAG: [0.1] * 80})
    for i in range(3):
        write(logs / f"a{i}", [DONE], **{TAG: [0.1] * 80})
    return logs


@pytest.fixture(scope="module")
def opened(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    scratch = tmp_path_factory.mktemp("scratch")
    board = Board(logs, scratch).ready()
    browser = Browser(scratch / "profile")
    browser.open(board)
    yield browser
    browser.close()
    board.close()


@pytest.fixture
def page(opened: Browser) -> Iterator[Browser]:
    yield opened
    assert opened.complaints() == []


def show(page: Browser, run: str) -> None:
    page.js("document.querySelector(`[aria-label='show only ${arguments[0]}']`).click()", run)
    page.wait(f"{CHART}.data.length && document.querySelectorAll('.runs input:checked').length === 1")
    page.wait(
        f"""document.querySelector('.runs li:has(input:checked) .name').textContent === '{run}'
        && {CHART}.getAttribute('aria-label').includes(document.querySelector('.tools .hint').textContent)"""
    )
    page.driver.execute_async_script("setTimeout(arguments[0], 400)")


def lines(page: Browser, axis: str) -> list[dict[str, Any]]:
    return page.js(f"return {CHART}.data.filter((t) => t.mode.startsWith('lines') && t.yaxis === '{axis}')")


def edges(page: Browser, axis: str) -> list[dict[str, Any]]:
    return page.js(f"return {CHART}.data.filter((t) => Array.isArray(t.marker?.symbol) && t.yaxis === '{axis}')")


def hover(page: Browser, x: float, y: float, axis: str = "yaxis", off: int = 0) -> ActionChains:
    """The mouse over a place of the chart; `y` as a share of the axis from below."""
    at = page.js(
        f"""const chart = {CHART};
        const full = chart._fullLayout;
        const [x, share, name, off] = arguments;
        chart.scrollIntoView({{ block: 'center' }});
        const vertical = full[name];
        return [full.xaxis._offset + full.xaxis.d2p(x) + off - chart.clientWidth / 2,
                vertical._offset + vertical._length * (1 - share) - chart.clientHeight / 2];""",
        x,
        y,
        axis,
        off,
    )
    chart = page.driver.find_element("css selector", ".timeline .chart")
    chain = ActionChains(page.driver, 50).move_to_element_with_offset(chart, at[0] - 4, at[1]).move_by_offset(4, 0)
    return chain.pause(0.1)


def test_a_rate_of_0_breaks_the_line_and_has_a_mark_at_the_edge(page: Browser) -> None:
    show(page, "zero")
    (line,) = lines(page, "y")
    assert [value for value in line["y"] if value is not None] == [pytest.approx(0.01)] * 41
    assert [y for x, y in zip(line["x"], line["y"], strict=True) if x > 40] == [None] * 40
    (edge,) = edges(page, "y")
    assert (edge["x"], edge["text"], edge["marker"]["symbol"]) == ([40], ["→ 0"], ["triangle-down-open"])
    hover(page, 40, 0.04).perform()
    tip = page.wait(f"!{TIP}.hidden && {TIP}.textContent.includes('logarithmic') && {TIP}.textContent")
    assert f"{TAG}: 0" in tip
    assert "steps 40 to 8" in tip
    assert "▽ beyond the axis" in page.texts(".signs")[0]


def test_a_fall_is_drawn_at_its_true_values(page: Browser) -> None:
    show(page, "cool")
    (line,) = lines(page, "y")
    shown = dict(zip(line["x"], line["y"], strict=True))
    assert shown[78] == pytest.approx(2e-5)
    assert shown[70] == pytest.approx(1e-4)
    assert page.js(f"return {CHART}.layout.yaxis.range")[0] < math.log10(2e-5)
    (edge,) = edges(page, "y")
    assert (edge["x"], edge["text"], edge["textposition"]) == ([79], ["→ 1e-12"], ["middle left"])


def test_of_the_losses_only_what_lies_far_from_all_others_is_beyond_the_axis(page: Browser) -> None:
    show(page, "zero")
    assert edges(page, "y3") == []
    # what crosses all charts doesn't cross the losses' names
    titles = page.js(f"return {CHART}.layout.annotations.filter((one) => one.text.includes('loss'))")
    assert [title["bgcolor"] for title in titles] == ["#ffffff"]
    show(page, "cool")
    (edge,) = edges(page, "y3")
    assert edge["x"] == [50]
    assert page.texts(".signs") == ["△▽ beyond the axis"]


def test_what_the_signs_mean_is_told(page: Browser) -> None:
    show(page, "nan")
    assert page.texts(".signs") == ["\u00d7 not finite"]
    show(page, "zero")
    chip = "[...document.querySelectorAll('.choices .chip')].find((one) => one.textContent.includes('PlateauDecay'))"
    sign = page.js(f"return getComputedStyle({chip}.querySelector('.sign span')).color")
    assert sign == "rgb(204, 121, 167)"
    colours = page.js(f"return {CHART}.data.filter((t) => t.marker?.symbol === 'square').map((t) => t.marker.color)")
    assert colours == ["#CC79A7"]


def test_the_panel_is_no_trap_for_the_keyboard(page: Browser) -> None:
    show(page, "zero")
    for key in (Keys.ENTER, Keys.SPACE):
        page.js("document.querySelector('.table tbody button').focus()")
        ActionChains(page.driver).send_keys(Keys.ENTER).perform()
        page.wait("document.activeElement.matches('.detail h3')")
        page.js("document.querySelector('.detail .close').focus()")
        ActionChains(page.driver).send_keys(key).perform()
        page.wait("document.querySelector('.detail').hidden && document.activeElement.matches('.table button')")
    page.js("document.querySelector('.table tbody button').focus()")
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    page.wait("document.activeElement.matches('.detail h3')")
    ActionChains(page.driver).send_keys(Keys.TAB).perform()
    page.wait("!document.activeElement.matches('.detail h3')")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait("document.querySelector('.detail').hidden")


def test_after_a_click_on_a_mark_the_tip_is_gone_and_escape_closes_the_panel(page: Browser) -> None:
    show(page, "zero")
    share = page.js(f"""const y = {CHART}._fullLayout.yaxis; return (-2 - y.range[0]) / (y.range[1] - y.range[0])""")
    hover(page, 40, share).perform()
    page.wait(f"!{TIP}.hidden && {TIP}.textContent.includes('PlateauDecay')")
    hover(page, 40, share).click().perform()
    page.wait("!document.querySelector('.detail').hidden")
    page.driver.execute_async_script("setTimeout(arguments[0], 600)")
    assert page.js(f"return {TIP}.hidden && document.querySelector('.cursor').hidden")
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    page.wait("document.querySelector('.detail').hidden")


def test_there_is_no_step_beyond_the_last_and_none_between_two(page: Browser) -> None:
    show(page, "short")
    ticks = page.js(f"return [...{CHART}.querySelectorAll('.xtick text')].map((tick) => tick.textContent)")
    assert ticks == ["0", "1", "2"]
    show(page, "zero")
    last = page.texts(".tools .hint")[0].rpartition(" ")[2]
    hover(page, int(last), 0.5, off=14).perform()
    tip = page.wait(f"!{TIP}.hidden && {TIP}.textContent")
    assert f"step {last}" in tip


def test_a_long_name_has_a_short_chip(page: Browser) -> None:
    show(page, "names")
    chip = page.wait("[...document.querySelectorAll('.choices .chip')].find((one) => one.textContent.includes('END'))")
    assert len(chip.text) < 60
    assert "…" in chip.text
    assert LONG in chip.get_attribute("title")
    assert chip.size["height"] < 40


def test_the_table_keeps_the_keyboards_place_while_a_run_goes_on(page: Browser, logs: Path) -> None:
    show(page, "live")
    page.wait("document.querySelectorAll('.table tbody button').length === 2")
    page.js("document.querySelectorAll('.table tbody button')[1].focus()")
    write(logs / "live", [change(95, 0.1, 0.05)], at=80, begins=False, **{TAG: [0.1] * 20})
    page.wait("document.querySelectorAll('.table tbody button').length === 3")
    assert page.js("return document.activeElement.closest('tr')?.querySelector('button').textContent") == "5"


def test_of_many_runs_the_bad_ones_come_first_and_can_be_found(page: Browser) -> None:
    names = page.texts(".runs .name")
    states = [text.split(" ", 1)[1] for text in page.texts(".runs .state")]
    bad = states.index("ended")
    assert (names[0], states[0]) == ("z-failed", "failed")
    assert {"z-failed", "live"} <= set(names[:bad])
    assert set(states[bad:]) == {"ended"}
    assert [name for name in names[bad:] if name != "nan"] == ["a2", "a1", "a0", "names", "short", "cool"]
    assert f"{states.count('failed')} failed" in page.texts(".now > p")[0]
    find = page.driver.find_element("css selector", ".now input[type=search]")
    find.send_keys("failed")
    page.wait("document.querySelectorAll('.runs li').length === arguments[0]", states.count("failed"))
    find.clear()
    find.send_keys(" ", Keys.BACKSPACE)
    page.wait("document.querySelectorAll('.runs li').length === 10")
