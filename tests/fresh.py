"""Processes that start in a moment: forked from one that has imported all that takes long, and has done nothing else.

What a fresh interpreter itself is needed for can't be tested so: what is told while modules are imported, and ranks
with different hash seeds. The test of torchrun, and the ranks that Lightning's own launchers start, have those.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent

PRELOAD = [
    *("__main__", "tests.killed"),
    # imported late: by an optimizer, and where weights are sharded
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict"),
]

SECONDS = 300.0


def context() -> Any:
    """Of `multiprocessing`."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOAD)
    return found


def own_environment() -> dict[str, str]:
    """Of a process that finds the package, and is no rank of the tests' own."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}


class Python:
    """`python ARGUMENTS` at work, as far as a script can tell.

    Args:
        arguments: a script, `-c CODE` or `-m MODULE`, and what follows.
        cwd: where; left out: the folder of the repository.
        environment: further variables.
        screen: a terminal for all that it writes; left out: two pipes.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path = HERE,
        environment: dict[str, str] | None = None,
        screen: str | None = None,
    ) -> None:
        self.arguments, self._screen = arguments, screen
        self._kept = tempfile.TemporaryDirectory()
        out, err = (screen, screen) if screen else (f"{self._kept.name}/out", f"{self._kept.name}/err")
        given = own_environment() | (environment or {})
        self._process = context().Process(target=_script, args=(arguments, str(cwd), given, out, err))
        self._process.start()

    @property
    def sentinel(self) -> int:
        """Ready when it has ended: for `multiprocessing.connection.wait`."""
        return self._process.sentinel

    def ended(self, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """Waits for it; raises `subprocess.TimeoutExpired` where it takes longer."""
        self._process.join(seconds)
        late = self._process.is_alive()
        self._process.kill()
        self._process.join()
        told = [] if self._screen else [Path(self._kept.name, name).read_text() for name in ("out", "err")]
        self._kept.cleanup()
        if late:
            raise subprocess.TimeoutExpired(self.arguments, seconds, *told)
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode, *told)


def python(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """The same, waited for."""
    return Python(*arguments, **more).ended()


def _script(arguments: tuple[str, ...], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), stream.fileno())
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    first, *rest = arguments
    sys.path[:0] = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("sitecustomize")  # as an interpreter does at its start
    if first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        name, *rest = rest
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *rest]
        sys.path.insert(0, str(Path(first).parent))
        runpy.run_path(first, run_name="__main__")
