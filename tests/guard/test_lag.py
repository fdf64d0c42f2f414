"""`DivergenceGuard(lag=1)`: the verdict comes one update later, and nothing bad has got into the weights by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

import lightning_lr as llr
from tests.faulty import Faulty, fit, fit_on_a_rank, momentum, same, state
from tests.pool import Pool


def guard(**more: Any) -> llr.DivergenceGuard:
    return llr.DivergenceGuard(lag=1, snapshot_every=10, save_snapshots=True, **more)


def test_a_healthy_run_has_the_same_bits(tmp_path: Path) -> None:
    judged, plain = Faulty(), Faulty()
    watching = guard()
    after = state(judged, fit(judged, tmp_path, watching))
    assert same(after, state(plain, fit(plain, tmp_path)))
    assert (watching.skips, watching.rewinds) == (0, 0)
    assert watching.summary()["judged"] == 72


@pytest.mark.parametrize("configure", [None, momentum])
@pytest.mark.parametrize("fault", ["nan", "grad", "loss", "weight"])
def test_a_bad_update_does_no_harm_and_validation_never_sees_it(fault: str, configure: Any, tmp_path: Path) -> None:
    # batch 47 is the last one before a validation: what is not judged yet is judged first
    for batch in (40, 47):
        model = Faulty(*([] if configure is None else [configure]), faults={batch: fault})
        judging = guard()
        made = fit(model, tmp_path, judging)
        found = judging.summary()
        told = {"nan": "dropped", "grad": "dropped", "loss": "limited", "weight": "rewinds"}
        assert {name: found[name] for name in sorted(set(told.values()))} == {
            "dropped": fault in ("nan", "grad"), "limited": fault == "loss", "rewinds": fault == "weight"
        }  # fmt: skip
        assert all(model.seen_by_validation)
        assert made.callback_metrics["val_loss"] < 1.5


def test_a_fault_on_one_rank_is_everybodys(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank_late, str(tmp_path))
    assert first == second
    assert first[3:5] == (2, 1)


def fit_on_a_rank_late(root: str) -> Any:
    return fit_on_a_rank(root, {30: "grad", 40: "nan", 60: "weight"}, lag=1)


@pytest.mark.filterwarnings("ignore:.*Please add the following callbacks.*ModelCheckpoint")
def test_resumed_around_an_incident_it_ends_as_the_uninterrupted_run(tmp_path: Path) -> None:
    faults = {40: "nan"}
    whole = Faulty(faults=faults)
    keep = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    ended = guard()
    after = state(whole, fit(whole, tmp_path / "whole", ended, keep, enable_checkpointing=True))
    for step in (5, 38, 39, 40, 41, 42, 43, 50):
        path = tmp_path / f"step={step}.ckpt"
        torch.load(path, weights_only=True)
        model, resumed = Faulty(faults=faults), guard()
        made = fit(model, tmp_path / "resumed", resumed, ckpt_path=str(path))
        assert same(state(model, made), after), step
        assert resumed.states == ended.states, step


@pytest.mark.parametrize("at", range(30, 42))
def test_weights_that_break_when_a_copy_is_due_are_not_copied(at: int, tmp_path: Path) -> None:
    model, watching = Faulty(momentum, {at: "weight"}), guard()
    fit(model, tmp_path, watching)
    assert watching.rewinds == 1
    assert model.finite_at_rest[-1]


@pytest.mark.parametrize("lag", [-1, 2, 0.5, None])
def test_another_lag_is_refused(lag: Any) -> None:
    with pytest.raises(ValueError, match="lag must be 0 or 1"):
        llr.DivergenceGuard(lag=lag)
