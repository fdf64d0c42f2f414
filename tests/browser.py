"""A real TensorBoard process, and a headless Chromium that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

HERE = Path(__file__).resolve().parent.parent
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SECONDS = 30.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)


def until(what: Callable[[], Any], words: str) -> Any:
    """Asks until the answer is true, and gives it."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{words}: not within {SECONDS:.0f} s")


class Board:
    """A TensorBoard.

    Args:
        logdir: with the runs.
        scratch: a folder for its output.
        flags: further ones.
        prefix: as given to `--path_prefix`.
    """

    def __init__(self, logdir: Path, scratch: Path, *flags: str, prefix: str = "") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}{prefix}"
        self.output = scratch / f"tensorboard-{port}.txt"
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port), *flags]
        command += ["--host", "127.0.0.1", "--reload_interval", "1", *(["--path_prefix", prefix] if prefix else [])]
        path = os.pathsep.join([*_entry_point(scratch), str(HERE)])
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                command, cwd=scratch, env={**os.environ, "PYTHONPATH": path}, stdout=output, stderr=output
            )

    def ready(self) -> Board:
        """Waits until it has our runs."""
        until(self._has_runs, f"TensorBoard lists the runs ({self.output})")
        return self

    def get(self, route: str) -> Any:
        with urlopen(f"{self.address}/data/{route}", timeout=SECONDS) as answer:
            return json.loads(answer.read())

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)

    def _has_runs(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(self.output.read_text())
        try:
            runs = self.get("plugin/lightning_lr/runs")["runs"]
            return bool(runs) and not any(run.get("reading") for run in runs)
        except OSError:
            return False


def _entry_point(scratch: Path) -> list[str]:
    """Where the package was installed before it had the tab, or not at all: a folder that says what an installed one
    would."""
    if metadata.entry_points(group="tensorboard_plugins", name="lightning_lr"):
        return []
    folder = scratch / "installed" / "lightning_lr-0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning_lr\nVersion: 0\n")
    text = (HERE / "pyproject.toml").read_text().split("[project.entry-points.tensorboard_plugins]\n")[1].split("\n")[0]
    (folder / "entry_points.txt").write_text(f"[tensorboard_plugins]\n{text.replace(chr(34), '')}\n")
    return [str(folder.parent)]


class Browser:
    """A Chromium with a fresh profile.

    Args:
        profile: an empty folder.
    """

    def __init__(self, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (*FLAGS, "--window-size=1300,1400", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(SECONDS)

    def open(self, board: Board) -> None:
        """Opens the tab as a user does, in TensorBoard's own page."""
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(f"{board.address}/#lightning_lr")
        frame = until(lambda: self.driver.find_elements("css selector", "iframe"), "the tab's frame")
        self.driver.switch_to.frame(frame[0])
        until(lambda: self.js("return document.querySelector('.timeline .chart')?.data?.length"), "the first picture")

    def js(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def wait(self, script: str, *args: Any) -> Any:
        """Until an expression is true."""
        return until(lambda: self.js(f"return {script}", *args), script)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def click(self, selector: str, words: str) -> None:
        """Clicks what has these words."""
        found = self.driver.find_elements("css selector", selector)
        next(one for one in found if words in one.text).click()

    def complaints(self) -> list[str]:
        """What our page wrote to the console as an error or a warning; TensorBoard's own has some."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING") and "plugin/lightning_lr" in entry["message"]
        ]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if url.startswith(("http", "ws"))]

    def close(self) -> None:
        self.driver.quit()
