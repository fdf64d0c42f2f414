"""One thread per process, silence from Lightning, and one pool of two processes for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

pytest.register_assert_rewrite("tests.witness")

from tests.pool import Pool  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="all kills, all cells of the table, all fuzzing")


TOGETHER = ("test_killed.py", "test_namespaces.py", "test_tab.py", "test_tab_page.py")
"""Files with fixtures that take long to make: one worker has all of such a file. They come first, since at the end
they would leave the other workers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in TOGETHER)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        # not by the marks of xdist: xdist 3.8 looks for them in vain with pytest 9.2
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0].rpartition("/")[2]
            return file if file in TOGETHER else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def long(request: pytest.FixtureRequest) -> bool:
    """Whether the long form was asked for."""
    return request.config.getoption("--long")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    """Two processes that stay, joined by gloo: `pool.run(function, *args)` gives the answer of each rank."""
    processes = Pool(2)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def four() -> Iterator[Pool]:
    """The same with four processes."""
    processes = Pool(4)
    yield processes
    processes.close()
