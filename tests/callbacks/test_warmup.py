"""Warm-up by updates, epochs, fraction of the run and optimizer; with every way to count an update."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import BackboneFinetuning, GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

import lightning_lr as llr
from tests.small import Loader, Model, Overflows, TwoOptimizers, digits, sgd, trainer


def rates(model: Model, warmup: llr.Warmup, root: Path, loader: Any = None, **kwargs: Any) -> list[float]:
    trainer(root, callbacks=[warmup], **kwargs).fit(model, Loader(6) if loader is None else loader)
    assert all(rest == [0.1] * len(rest) for rest in model.at_rest)
    return [row[0] for row in model.trace]


def expected(steps: int, count: int, shape: Any = lambda x: x, start: float = 0.0) -> list[float]:
    return [0.1 * (start + (1 - start) * shape((k + 1) / steps)) if k + 1 < steps else 0.1 for k in range(count)]


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"steps": 5}, 5),
        ({"steps": 1}, 1),
        ({"epochs": 1.5}, 9),
        ({"epochs": 0.5}, 3),
        ({"fraction": 0.5}, 6),
        ({"fraction": 1.0}, 12),
    ],
)
def test_lengths(arguments: dict[str, Any], steps: int, tmp_path: Path) -> None:
    assert rates(Model(sgd), llr.Warmup(**arguments), tmp_path) == pytest.approx(expected(steps, 12))


SHAPES = {
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
    "exponential": lambda x: (1 - math.exp(-5 * x)) / (1 - math.exp(-5)),
    "constant": lambda x: 0.0 if x < 1 else 1.0,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("start", [0.1, 0.5])
def test_shapes_from_any_start(shape: Any, start: float, tmp_path: Path) -> None:
    got = rates(Model(sgd), llr.Warmup(7, shape=shape, start_factor=start), tmp_path)
    assert got == pytest.approx(expected(7, 12, SHAPES[shape], start))


def test_accumulated_batches_count_once_and_a_short_epochs_end_counts(tmp_path: Path) -> None:
    model = Model(sgd)
    # 6 batches by 4: an update after the fourth, and one at the end of the epoch
    got = rates(model, llr.Warmup(epochs=2), tmp_path, accumulate_grad_batches=4, max_epochs=3)
    assert got == pytest.approx(expected(4, 6))


def test_accumulation_that_changes_by_epoch(tmp_path: Path) -> None:
    model = Model(sgd)
    callbacks = [llr.Warmup(epochs=2), GradientAccumulationScheduler({0: 3, 1: 1})]
    trainer(tmp_path, callbacks=callbacks).fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(expected(2 + 6, 8))


@pytest.mark.parametrize(("limits", "steps"), [({"max_steps": 10, "max_epochs": -1}, 5), ({"max_steps": 8}, 4)])
def test_fraction_of_a_run_that_max_steps_ends(limits: dict[str, int], steps: int, tmp_path: Path) -> None:
    got = rates(Model(sgd), llr.Warmup(fraction=0.5), tmp_path, **limits)
    assert got == pytest.approx(expected(steps, limits["max_steps"]))


def test_auto_is_two_over_one_minus_beta2_of_each_group(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        groups = [{"params": [model.head.weight], "betas": (0.9, 0.5)}, {"params": [model.head.bias]}]
        return torch.optim.AdamW(groups, lr=0.1, betas=(0.9, 0.75))

    model = Model(configure)
    trainer(tmp_path, callbacks=[llr.Warmup("auto")]).fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(expected(4, 12))
    assert [row[1] for row in model.trace] == pytest.approx(expected(8, 12))


def test_auto_without_beta2_says_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs an Adam-type optimizer.*a number of steps.*Warmup\(fraction=0.05\)"):
        rates(Model(sgd), llr.Warmup("auto"), tmp_path)


def test_a_warm_up_longer_than_the_run_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has 20 updates to go and the run has 12"):
        rates(Model(sgd), llr.Warmup(20), tmp_path)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        images, labels = digits()
        for i in range(100):
            yield images[i], labels[i]


@pytest.mark.parametrize(
    ("arguments", "limits", "message"),
    [
        ({"epochs": 1}, {"max_steps": 5, "max_epochs": -1}, r"has no length: count .*Warmup\(steps=100\)"),
        ({"fraction": 0.5}, {"max_epochs": 1}, r"has no length: count .*Warmup\(steps=100\)"),
        ({"fraction": 0.5}, {"max_epochs": -1}, r"max_epochs is -1: count .*Warmup\(steps=100\)"),
    ],
)
def test_a_length_that_cannot_be_told_says_what_to_give_instead(
    arguments: dict[str, Any], limits: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        rates(Model(sgd), llr.Warmup(**arguments), tmp_path, DataLoader(Endless(), batch_size=8), **limits)


def test_steps_and_max_steps_need_no_length_of_the_data(tmp_path: Path) -> None:
    got = rates(
        Model(sgd),
        llr.Warmup(fraction=0.5),
        tmp_path,
        DataLoader(Endless(), batch_size=8),
        max_steps=8,
        max_epochs=-1,
    )
    assert got == pytest.approx(expected(4, 8))


def test_a_group_added_by_unfreezing_warms_up_from_its_own_birth(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

    model = Model(configure, hidden=8)
    unfreeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.02, train_bn=False)
    trainer(tmp_path, callbacks=[unfreeze, llr.Warmup(4)], max_epochs=2).fit(model, Loader(6))
    assert [row[0] for row in model.trace] == pytest.approx(expected(4, 12))
    assert [row[1] for row in model.trace if len(row) > 1] == pytest.approx([0.005, 0.01, 0.015, 0.02, 0.02, 0.02])


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step", "ignore:.*autocast")
def test_updates_that_a_gradient_scaler_skipped_do_not_warm_up(tmp_path: Path) -> None:
    model = Overflows(sgd)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    got = rates(model, llr.Warmup(6), tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert got == pytest.approx(expected(6, 9))


def test_each_optimizer_counts_its_own_updates_under_manual_optimization(tmp_path: Path) -> None:
    model = TwoOptimizers()
    warmup = llr.Warmup(4)
    seen: list[tuple[int, int]] = []

    class Look(llr.LRMonitor):
        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            seen.append((self.ledger.updates(0), self.ledger.updates(1)))

    trainer(tmp_path, callbacks=[warmup, Look(layout=False)], logger=True, max_epochs=1).fit(model, Loader(6))
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)]
    assert [row[0] for row in model.trace] == pytest.approx([0.025, 0.05, 0.025, 0.075, 0.1, 0.05, 0.1, 0.1, 0.075])


BAD = [
    ({}, "give exactly one of steps, epochs and fraction, got none"),
    ({"steps": 5, "fraction": 0.1}, "got steps=5, fraction=0.1"),
    ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
    ({"steps": -3}, "got -3"),
    ({"steps": 2.5}, "got 2.5"),
    ({"steps": True}, "got True"),
    ({"steps": "long"}, "a whole number >= 1 or 'auto', got 'long'"),
    ({"epochs": 0}, "epochs must be in (0, inf), got 0"),
    ({"epochs": math.nan}, "epochs must be in (0, inf), got nan"),
    ({"epochs": "2"}, "epochs must be in (0, inf), got '2'"),
    ({"fraction": 0.0}, "fraction must be in (0, 1], got 0.0"),
    ({"fraction": 1.5}, "fraction must be in (0, 1], got 1.5"),
    ({"steps": 5, "shape": "square"}, "shape must be one of linear, cosine, exponential, constant, got 'square'"),
    ({"steps": 5, "start_factor": 1.0}, "start_factor must be in [0, 1), got 1.0"),
    ({"steps": 5, "start_factor": math.nan}, "start_factor must be in [0, 1), got nan"),
    ({"steps": 5, "shape": "constant"}, "start_factor must be in (0, 1) with shape='constant'"),
    ({"steps": 5, "name": "a/b"}, "name must be a word without '/'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_settings_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        llr.Warmup(**arguments)
    assert message in str(caught.value)
