"""A pool of processes joined by gloo, started once, so that a multi-process test costs no start of an interpreter."""

from __future__ import annotations

import os
import queue
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

from tests.fresh import context

SECONDS = 120


class RankError(AssertionError):
    """A rank raised; the message holds its traceback."""


class Pool:
    """`size` ranks; a function that hangs or kills one ends the pool, and the next call starts another."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._processes: list[Any] = []

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Calls a module-level function on every rank; returns the answers by rank, or raises `RankError`."""
        answers = self.outcomes(function, *args)
        for rank, (worked, answer) in enumerate(answers):
            if not worked:
                raise RankError(f"rank {rank}:\n{answer}")
        return [answer for _, answer in answers]

    def outcomes(self, function: Callable[..., Any], *args: Any) -> list[tuple[bool, Any]]:
        """As `run`, but gives (True, answer) or (False, traceback) for each rank."""
        if not self._processes:
            self._start()
        for tasks in self._tasks:
            tasks.put((function, args))
        found: dict[int, tuple[bool, Any]] = {}
        try:
            while len(found) < self.size:
                rank, worked, answer = self._answers.get(timeout=SECONDS)
                found[rank] = (worked, answer)
        except queue.Empty:
            self.close()
            missing = sorted(set(range(self.size)) - set(found))
            raise RankError(f"ranks {missing} gave no answer in {SECONDS} s; the others: {found}") from None
        if len({worked for worked, _ in found.values()}) > 1:
            self.close()  # a rank that raised alone has left a collective half done
        return [found[rank] for rank in range(self.size)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes = []

    def _start(self) -> None:
        forked = context()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._answers = forked.Queue()
        self._tasks = [forked.Queue() for _ in range(self.size)]
        self._processes = [
            forked.Process(target=_serve, args=(rank, self.size, port, self._tasks[rank], self._answers), daemon=True)
            for rank in range(self.size)
        ]
        for process in self._processes:
            process.start()


def _serve(rank: int, size: int, port: int, tasks: Any, answers: Any) -> None:
    os.environ.update(
        OMP_NUM_THREADS="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="tests",
    )
    import logging

    import torch
    from lightning_utilities.core.rank_zero import rank_zero_only

    # Lightning, imported by now, has read these variables already
    rank_zero_only.rank = rank
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    from lightning_lr.copies import shares

    # the tests' models are small, and their copies are to be divided too
    shares.WORTH = 1
    while True:
        function, args = tasks.get()
        try:
            answer = (rank, True, function(*args))
        except BaseException:
            answer = (rank, False, traceback.format_exc())
        answers.put(answer)
