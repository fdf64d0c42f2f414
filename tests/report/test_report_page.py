"""The report's page in a real browser: it is drawn from what is in it, and asks nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_lr.report.cli import main
from tests.browser import CHROMIUM, DRIVER, Browser, until
from tests.eventfiles import END, HURT, RUN, Writer

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="there is no chromium with its chromedriver on this machine, to look at the page with",
)

NAME = "<b onclick=alert(1)>&amp;</script><script>document.title='hurt'</script>"


def test_the_page_draws_the_story_and_makes_no_request(tmp_path: Path) -> None:
    group = {"tag": f"lr-{NAME}", "optimizer": NAME, "group": ""}
    writer = Writer(tmp_path / "logs").record(0, **{**RUN, "groups": [group]})
    writer.scalars(group["tag"], [(step, 0.1 if step < 500 else 0.05) for step in range(0, 1000, 5)])
    writer.scalars("train_loss", [(step, 1.0 / (1 + step)) for step in range(0, 1000, 20)])
    writer.scalars("lr-factor/DivergenceGuard", [(0, 1.0), (499, 1.0), (500, 0.5), (999, 0.5)])
    writer.scalars("lr-update/net", [(step, 1e-3) for step in range(0, 1000, 50)])
    part = {"source": "DivergenceGuard", "old": 1.0, "new": 0.5, "reason": NAME}
    words = f"{NAME}: 0.1 -> 0.05"
    writer.record(500, kind="change", **group, old=0.1, new=0.05, parts=[part], cause=NAME, words=words)
    writer.record(500, **{**HURT, "words": "went back"}, what="rewound", loss=9.0).record(1000, **END)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "logs"), "--html", str(page)]) == 0
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        browser.driver.get("about:blank")
        browser.driver.get_log("performance")
        browser.driver.get_log("browser")
        browser.driver.get(page.as_uri())
        until(lambda: browser.js("return document.querySelector('#page')?.dataset.ready"), "the page is drawn")
        until(lambda: browser.js("return document.querySelector('.timeline .chart')?.data?.length"), "the timeline")
        assert browser.driver.title == "Learning rates"
        said = browser.driver.find_element("css selector", ".now").text
        assert "Finished at step 1,000, healthy" in said
        assert "<b onclick=alert(1)>&amp;" in said
        # a click on the change's row shows the record
        rows = browser.driver.find_elements("css selector", ".table tr")
        row = next(row for row in rows if "0.1 -> 0.05" in row.text)
        row.find_element("css selector", "button").click()
        until(lambda: words in browser.driver.find_element("css selector", ".detail").text, "the detail")
        # zoomed in, what is in the page is cut, and drawn again
        browser.click("button", "+")
        until(lambda: "steps 0 to" not in browser.driver.find_element("css selector", "#page").text, "the zoom")
        until(lambda: browser.js("return document.querySelector('.heat .chart')?.data?.length"), "the heat map")
        assert browser.driver.get_log("browser") == []
        assert browser.requests() == []
    finally:
        browser.close()
