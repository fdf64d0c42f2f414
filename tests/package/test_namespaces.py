"""Lightning has two names, `pytorch_lightning` and `lightning.pytorch`: the callbacks are at home in both."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.namespaces import (
    BATCHES,
    EPOCHS,
    NAMESPACES,
    both,
    each,
    five,
    home,
    loaders,
    module,
    record,
    run,
    trainer,
)
from tests.pool import Pool

RUNS = {
    "healthy": {},
    "a batch of NaN, and a weight that breaks": {30: "nan", 40: "weight"},
}


@each
def test_a_callback_is_one_of_each_namespace_installed(namespace: str) -> None:
    assert all(isinstance(callback, home(namespace).Callback) for callback in five())


@both
@pytest.mark.parametrize("faults", RUNS)
def test_a_run_is_bit_for_bit_the_same_in_either_namespace(faults: str, tmp_path: Path) -> None:
    one, other = (run(namespace, tmp_path / namespace, RUNS[faults]) for namespace in NAMESPACES)
    assert one == other
    assert len(one["findings"]) == 2
    assert one["guard"][:2] == ([1, 1] if RUNS[faults] else [0, 0])
    assert ("DivergenceGuard: rewound" in one["csv"]) == bool(RUNS[faults])
    assert RUNS[faults] or "PlateauDecay 1 -> 0.5" in one["csv"]


COMPANY = ("ModelCheckpoint", "EarlyStopping", "StochasticWeightAveraging", "WeightAveraging")


def company(namespace: str, name: str, root: Path) -> Any:
    """One of Lightning's own callbacks, or None where this version has none of that name."""
    settings: dict[str, dict[str, Any]] = {
        "ModelCheckpoint": {"dirpath": root / "checkpoints", "monitor": "val_loss", "save_top_k": -1},
        "EarlyStopping": {"monitor": "val_loss", "patience": 3, "min_delta": 0.5},
        "StochasticWeightAveraging": {"swa_lrs": 0.01, "swa_epoch_start": 2},
        "WeightAveraging": {},
    }
    kind = getattr(home(namespace).callbacks, name, None)
    return kind and kind(**settings[name])


@both
@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
@pytest.mark.parametrize("name", COMPANY)
def test_beside_a_callback_of_lightnings_own_too(name: str, tmp_path: Path) -> None:
    records = []
    for namespace in NAMESPACES:
        root = tmp_path / namespace
        own = company(namespace, name, root)
        if own is None:
            pytest.skip(f"this version has no {name}")
        model, callbacks = module(namespace, RUNS["a batch of NaN, and a weight that breaks"]), five()
        made = trainer(namespace, root, [*callbacks, own], enable_checkpointing=name == "ModelCheckpoint")
        made.fit(model, *loaders())
        average = getattr(own, "_average_model", None)
        saved = [torch.load(path, weights_only=True)["state_dict"] for path in sorted(root.glob("checkpoints/*"))]
        records.append(
            {
                **record(model, callbacks),
                "steps": made.global_step,
                "average": average and [p.tolist() for p in average.parameters()],
                "saved": [[value.tolist() for value in state.values()] for state in saved],
            }
        )
    assert records[0] == records[1]
    assert records[0]["guard"][1] == 1
    assert (records[0]["steps"] < BATCHES * EPOCHS) == (name == "EarlyStopping")
    assert bool(records[0]["average"]) == name.endswith("Averaging")
    # at the end of an epoch that lies in a sweep a checkpoint that monitors something is not saved
    assert (EPOCHS // 2 < len(records[0]["saved"]) < EPOCHS) == (name == "ModelCheckpoint")


@both
@pytest.mark.parametrize("stock", NAMESPACES)
@each
def test_lightnings_monitor_is_known_by_either_name(namespace: str, stock: str, tmp_path: Path) -> None:
    import lightning_lr as llr

    twice = [llr.LRMonitor(), home(stock).callbacks.LearningRateMonitor()]
    ours = "LRMonitor and LearningRateMonitor write the same tags"
    # some versions of Lightning refuse callbacks of its other name themselves
    theirs = "nothing" if stock == namespace else "Please switch to a single import style"
    with pytest.raises((ValueError, TypeError), match=f"{ours}|{theirs}"):
        trainer(namespace, tmp_path, twice).fit(module(namespace), *loaders())


@both
@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_moves_to_the_other_namespace_ends_as_if_it_had_not(first: int, tmp_path: Path) -> None:
    before, after = NAMESPACES[first], NAMESPACES[1 - first]
    faults = {24: "nan", 44: "weight"}
    saving = home(before).callbacks.ModelCheckpoint(tmp_path / "saved", save_top_k=-1, every_n_epochs=1)
    whole, callbacks = module(before, faults), five()
    trainer(before, tmp_path, [*callbacks, saving], enable_checkpointing=True).fit(whole, *loaders())
    expected = record(whole, callbacks)
    assert expected["guard"][:2] == [1, 1]
    for epoch in (2, 4):
        (path,) = tmp_path.glob(f"saved/epoch={epoch - 1}-*")
        moved, callbacks = module(after, faults), five()
        trainer(after, tmp_path / "moved", callbacks).fit(moved, *loaders(), ckpt_path=str(path))
        found = record(moved, callbacks)
        # what was told before the checkpoint stays with the process that told it
        changes, told = found.pop("changes"), found.pop("story")
        assert changes
        assert changes == expected["changes"][-len(changes) :]
        assert told[-1] == expected["story"][-1]
        assert found == {key: expected[key] for key in found}


# several ranks ---------------------------------------------------------------------------------------------------


class Kept(logging.Handler):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def fit_on_a_rank(namespace: str, root: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    """One rank's record, the warnings that it gave, and what it said on the console."""
    import lightning_lr as llr

    lightning = home(namespace)
    kept = Kept()
    console = importlib.import_module("lightning_utilities.core.rank_zero").log
    level = console.level
    console.addHandler(kept)
    console.setLevel(logging.INFO)
    callbacks = five()
    callbacks[3] = llr.Warmup(1000)
    made = trainer(namespace, root, callbacks, devices=2, strategy="ddp", use_distributed_sampler=False)
    # one rank alone meets the fault
    model = module(namespace, {44: "nan"} if made.global_rank == 1 else None)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.fit(model, *loaders(made.global_rank * 400))
    finally:
        console.removeHandler(kept)
        console.setLevel(level)
    assert isinstance(made, lightning.Trainer)
    warned = [str(warning.message) for warning in caught if "Warmup" in str(warning.message)]
    return (
        record(model, callbacks),
        warned,
        [line for line in kept.lines if "LRFinder" in line or "dropped this" in line],
    )


@each
def test_two_ranks_agree_and_the_first_speaks_for_both(namespace: str, pool: Pool, tmp_path: Path) -> None:
    (first, warned, said), (second, *silent) = pool.run(fit_on_a_rank, namespace, tmp_path)
    assert first == second
    assert first["guard"][:2] == [1, 0]
    assert silent == [[], []]
    assert len(warned) == 1
    # each sweep says before it what it costs
    assert ["may take" in line for line in said] == [True, False, False, True, False]
    assert [line.split(":")[0] for line in said if "may take" not in line] == [
        "LRFinder (asked for at=0)",
        "step 44",
        "LRFinder (asked for at=30)",
    ]


# one installed, or none, or a broken one ---------------------------------------------------------------------------

PRELOADED = """
import os, sys
import pytest, sklearn.datasets, torch, torch._dynamo, torch.distributed.fsdp, torchmetrics
root, *cases = sys.argv[1:]
for number, case in enumerate(cases):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{root}/{number}.txt", os.O_CREAT | os.O_WRONLY), 1)
        try:
            exec(case, {"root": f"{root}/{number}"})
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Forks an interpreter that knows no Lightning yet, but all that takes long to import, for each case."""


def blocked(*packages: str, how: str = "missing") -> str:
    """Code after which the packages can't be imported: none is installed, or it's `broken`."""
    if how == "missing":
        return f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n"
    return f"""
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name.split(".")[0] in {packages!r}:
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
"""


BASES = """
from lightning_lr.callbacks.base import LRCallback
print([base.__module__ for base in LRCallback.__bases__ if base.__name__ == "Callback"])
"""
ALONE = f"""{BASES}
import json, pathlib
from tests.namespaces import run
print(json.dumps(run({{!r}}, pathlib.Path(root))))
"""
CONSOLE = """
import lightning_lr
from lightning_utilities.core import rank_zero
print(rank_zero.log.name, rank_zero.rank_zero_deprecation_category.__module__)
"""
CASES = {
    "alone: pytorch_lightning": blocked("lightning") + ALONE.format("pytorch_lightning"),
    "alone: lightning.pytorch": blocked("pytorch_lightning") + ALONE.format("lightning.pytorch"),
    "neither": blocked("lightning", "pytorch_lightning") + "from lightning_lr import Warmup",
    "one broken": blocked("lightning", how="broken") + BASES,
    "both broken": blocked("lightning", "pytorch_lightning", how="broken") + "from lightning_lr import Warmup",
    "console: pytorch_lightning": "import pytorch_lightning" + CONSOLE,
    "console: lightning.pytorch": "import lightning.pytorch" + CONSOLE,
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each case prints in an interpreter that has not imported Lightning yet."""
    root = tmp_path_factory.mktemp("cases")
    subprocess.run(
        [sys.executable, "-c", PRELOADED, str(root), *CASES.values()],
        check=True,
        timeout=300,
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return {name: (root / f"{number}.txt").read_text() for number, name in enumerate(CASES)}


@each
def test_one_namespace_is_enough(namespace: str, told: dict[str, str], tmp_path: Path) -> None:
    bases, found = told[f"alone: {namespace}"].splitlines()
    assert bases == f"['{namespace}.callbacks.callback']"
    assert json.loads(found) == run(namespace, tmp_path)


@pytest.mark.skipif("pytorch_lightning" not in NAMESPACES, reason="it is the one that works")
def test_a_broken_package_that_nobody_uses_hurts_nobody(told: dict[str, str]) -> None:
    assert told["one broken"] == "['pytorch_lightning.callbacks.callback']\n"


def test_without_lightning_the_error_names_what_to_install_and_hides_no_other(told: dict[str, str]) -> None:
    assert told["neither"] == (
        "ModuleNotFoundError: lightning_lr needs pytorch-lightning or lightning: pip install pytorch-lightning\n"
    )
    assert told["both broken"] == "RuntimeError: operator torchvision::nms does not exist\n"


@each
def test_the_console_stays_with_the_namespace_that_was_imported_first(namespace: str, told: dict[str, str]) -> None:
    # or a level that was set on its logger would hold no longer
    fabric = {"pytorch_lightning": "lightning_fabric", "lightning.pytorch": "lightning.fabric"}[namespace]
    expected = f"{namespace}.utilities.rank_zero {fabric}.utilities.rank_zero\n"
    assert told[f"console: {namespace}"] == expected
