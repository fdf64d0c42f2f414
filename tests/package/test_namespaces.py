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
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.pool import Pool

# this module must do without either name at import: tests.small has one
NAMESPACES = tuple(n for n in ("pytorch_lightning", "lightning.pytorch") if importlib.util.find_spec(n.split(".")[0]))
BATCHES, EPOCHS = 12, 9

each = pytest.mark.parametrize("namespace", NAMESPACES)
both = pytest.mark.skipif(len(NAMESPACES) < 2, reason="only one of the namespaces is installed")


def home(namespace: str) -> Any:
    """The namespace's package, with its callbacks and loggers."""
    for part in ("callbacks", "loggers"):
        importlib.import_module(f"{namespace}.{part}")
    return importlib.import_module(namespace)


class Net:
    """The body of a `LightningModule` of whatever namespace: a small net, and faults by batch number.

    Args:
        faults: `nan` (in the inputs) or `weight` (one set to NaN), by batch.
    """

    def __init__(self, faults: dict[int, str] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        self.faults = faults or {}

    def training_step(self: Any, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        fault = self.faults.get(self.trainer.fit_loop.epoch_loop.total_batch_idx)
        if fault == "nan":
            images = images * float("nan")
        if fault == "weight":
            with torch.no_grad():
                self.net[2].weight[0] = torch.nan
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self: Any, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self: Any) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, BATCHES * EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def module(namespace: str, faults: dict[int, str] | None = None) -> Any:
    return type("Module", (Net, home(namespace).LightningModule), {})(faults)


def loaders(offset: int = 0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    bunch: Any = load_digits()
    images, labels = torch.tensor(bunch.data, dtype=torch.float32) / 16.0, torch.tensor(bunch.target)
    parts = (slice(offset, offset + BATCHES * 16), slice(1024, 1088))
    train, held_out = (DataLoader(TensorDataset(images[p], labels[p]), batch_size=16) for p in parts)
    return train, held_out


def five() -> list[Any]:
    import lightning_lr as llr

    return [
        llr.LRMonitor(momentum=True),
        llr.DivergenceGuard(snapshot_every=10, save_snapshots=True),
        llr.PlateauDecay("val_loss", factor=0.5, patience=0, threshold=0.3, threshold_mode="abs"),
        llr.Warmup(8),
        llr.LRFinder(at=[0, 30], steps=20),
        llr.Cooldown(12, shape="1-sqrt"),
    ]


def trainer(namespace: str, root: Path, callbacks: list[Any], **settings: Any) -> Any:
    lightning = home(namespace)
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": EPOCHS,
        "default_root_dir": root,
        "logger": lightning.loggers.CSVLogger(root),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 4,
    }
    return lightning.Trainer(callbacks=callbacks, **{**defaults, **settings})


def record(model: Any, callbacks: list[Any]) -> dict[str, Any]:
    """All that a run has to show, with every bit of its numbers."""
    monitor, guard, plateau, warmup, finder, _ = callbacks
    return {
        "weights": [p.tolist() for p in model.parameters()],
        "rates": monitor.rates,
        "changes": [repr(change) for change in monitor.changes],
        "story": [line for line in monitor.story if "MiB" not in line],
        "findings": [repr(finding) for finding in finder.findings],
        "guard": [guard.skips, guard.rewinds, guard.updates_lost],
        "plateau": repr(plateau.state),
        "ledger": repr(warmup.run.save()),
    }


RUNS = {
    "healthy": {},
    "a batch of NaN, and a weight that breaks": {30: "nan", 40: "weight"},
}


def run(namespace: str, root: Path, faults: dict[int, str] | None = None) -> dict[str, Any]:
    model, callbacks = module(namespace, faults), five()
    trainer(namespace, root, callbacks).fit(model, *loaders())
    written = next(root.glob("lightning_logs/*/metrics.csv")).read_text()
    return {**record(model, callbacks), "csv": written}


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
from tests.package.test_namespaces import run
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
