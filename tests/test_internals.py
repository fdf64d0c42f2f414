"""Names of Lightning, torch and torchmetrics that are not public: each is looked for before training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision

import lightning_lr
from lightning_lr import Warmup, internals
from lightning_lr.internals import INTERNALS, TESTED, check
from tests.small import Loader, Model, sgd, trainer


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
            monkeypatch.delattr(owner, name)
            found = True
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
    with pytest.raises(RuntimeError, match="needs Trainer.fit_loop.epoch_loop._batches_that_stepped, which is not in"):
        made.fit(model, Loader())
    assert model.trace == []


PRIVATE = re.compile(
    r"(?<![\w.])(?!self\b|cls\b)\w+(?:\([^()]*\)|\[[^][]*\])?\._(?!_)\w+|self\.(?!_)\w+\._(?!_)\w+|[\"']_[a-z]\w+[\"']"
)
OWN = re.compile(
    r"(peer|sweep|generation|snapshot|callback|memory|state|cls|trial|now|verdict|signals|job|word|self)\b"
)


def test_private_names_of_others_stand_in_one_file_only() -> None:
    own = {name for name in dir(lightning_lr)}
    lines = []
    for path in Path(internals.__file__).parent.rglob("*.py"):
        if path.name == "internals.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for found in PRIVATE.findall(line):
                if not OWN.match(found) and found not in own:
                    lines.append(f"{path.name}:{number}: {found}")
    assert lines == []
