"""Names of Lightning, torch and torchmetrics that are not public: each is looked for before training."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.tensorboard  # so that there is a SummaryWriter to look at
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision

from lightning_lr import Warmup, internals
from lightning_lr.internals import INTERNALS, TESTED, check, required_names
from tests.small import Loader, Model, pl, sgd, trainer


def ready(root: Path) -> Any:
    """A trainer with a module, a gradient scaler, and every callback whose internals are used."""
    callbacks: list[Any] = [EarlyStopping("val_loss"), ModelCheckpoint(root), StochasticWeightAveraging(0.1), Warmup(5)]
    try:
        from pytorch_lightning.callbacks import WeightAveraging

        callbacks.append(WeightAveraging())
    except ImportError:
        pass  # Lightning has had it since 2.6
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    made = trainer(root, callbacks=callbacks, plugins=[scaled], enable_checkpointing=True)
    made.strategy.connect(Model(sgd))
    return made


def remove(monkeypatch: pytest.MonkeyPatch, holder: Any, name: str) -> None:
    found = False
    for owner in (holder, *(type(holder).__mro__ if not isinstance(holder, type) else holder.__mro__)):
        if name in getattr(owner, "__dict__", {}):
            found = True
            try:
                monkeypatch.delattr(owner, name)
            except TypeError:  # a class in C, for which another stands in
                monkeypatch.setattr(required_names, owner.__name__.removesuffix("Base").lstrip("_"), object)
    assert found, f"nobody has {name}"


@pytest.mark.parametrize("internal", INTERNALS, ids=lambda internal: f"{internal.owner}.{internal.name}")
def test_a_name_that_a_release_has_lost_is_told_by_name(
    internal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ready(tmp_path)
    check(made)
    holder = internal.holder(made)
    if holder is None:
        assert internal.owner == "WeightAveraging"
        return
    remove(monkeypatch, holder, internal.name)
    words = f"lightning_lr needs {internal.owner}.{internal.name}.* known to work with {TESTED}"
    with pytest.raises(RuntimeError, match=words.replace("(", "\\(")):
        check(made)


def test_a_run_ends_before_its_first_batch_when_a_name_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(sgd)
    made = trainer(tmp_path, callbacks=[Warmup(5)])
    monkeypatch.delattr(made.fit_loop.epoch_loop, "_batches_that_stepped")
    with pytest.raises(RuntimeError, match="lightning_lr needs .*epoch_loop._batches_that_stepped, which is not in"):
        made.fit(model, Loader())
    assert model.trace == []


def test_a_users_own_callback_may_have_the_name_of_lightnings(tmp_path: Path) -> None:
    own = [type(name, (pl.Callback,), {})() for name in ("EarlyStopping", "ModelCheckpoint", "WeightAveraging")]
    model = Model(sgd)
    trainer(tmp_path, callbacks=[*own, Warmup(5)], max_epochs=1).fit(model, Loader())
    assert len(model.trace) == 6


PYTHON = {"_replace", "_asdict", "_fields", "_getframe"}
"""Documented ones of Python's own."""


def private_of_others(path: Path, own: set[str]) -> list[str]:
    """Private names that a file takes from elsewhere: attributes, imports, and words given to `getattr`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[tuple[int, str]] = []
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            names = [(node.lineno, node.attr)]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            names = [
                (node.lineno, a.value) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            ]
        private = [(line, name) for line, name in names if name.startswith("_") and not name.startswith("__")]
        found += [f"{path.name}:{line}: {name}" for line, name in private if name not in own]
    return found


@pytest.mark.invariant(15)
def test_private_names_of_others_stand_in_one_room_only() -> None:
    paths = [path for path in Path(internals.__file__).parent.parent.rglob("*.py") if path.parent.name != "internals"]
    own = set(PYTHON)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                own.add(node.attr)
    own -= {internal.name for internal in INTERNALS} - {"_buffers", "_metric"}
    assert [line for path in paths for line in private_of_others(path, own)] == []
