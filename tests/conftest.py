"""One thread per process, silence from Lightning, and one pool of two processes for all tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

pytest.register_assert_rewrite("tests.witness")

from tests.pool import Pool  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="all kills, all cells of the table, all fuzzing")


SHARED = ("pool", "four", "alone", "together", "late", "told", "uninterrupted")
"""Fixtures that take long to make."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps all that takes the pool, and each file's other tests that share such a fixture, in one worker."""
    for item in items:
        needs = [name for name in SHARED if name in getattr(item, "fixturenames", ())]
        if needs:
            item.add_marker(pytest.mark.xdist_group("pool" if {"pool", "four"} & set(needs) else item.path.name))


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
