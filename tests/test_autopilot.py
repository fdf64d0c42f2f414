"""All five together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_lr as llr
from lightning_lr.callbacks.autopilot import autopilot
from lightning_lr.callbacks.divergence import DivergenceGuard
from tests.small import Loader, Model, held_out, trainer


def names(callbacks: list[Any]) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def test_autopilot_is_all_five_and_each_can_be_changed_replaced_or_left_out() -> None:
    assert sorted(names(autopilot())) == ["DivergenceGuard", "LRFinder", "LRMonitor", "PlateauDecay", "Warmup"]
    own = llr.Warmup(3)
    made = autopilot("val_accuracy", warmup=own, plateau={"mode": "max"}, guard=None, lr_monitor=False)
    assert names(made) == ["LRFinder", "Warmup", "PlateauDecay"]
    assert made[1] is own
    assert (made[2].monitor, made[2].policy.mode) == ("val_accuracy", "max")
    assert autopilot(warmup={"steps": 7})[1].steps == 7
    assert autopilot(warmup={"shape": "cosine"})[1].fraction == 0.05


def test_what_autopilot_does_not_know_is_refused_with_what_it_knows() -> None:
    with pytest.raises(
        ValueError, match="no argument 'findr', did you mean 'finder'. It takes monitor, mode, finder, warmup"
    ):
        autopilot(findr=None)
    with pytest.raises(ValueError, match="guard must be a dict of arguments, a callback of lightning_lr, or None"):
        autopilot(guard=3)


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_with_autopilot_the_run_ends_the_same_whatever_rate_it_began_with(kind: str, tmp_path: Path) -> None:
    def configure(module: Any) -> torch.optim.Optimizer:
        more = {"momentum": 0.9} if kind == "SGD" else {}
        return getattr(torch.optim, kind)(module.parameters(), lr=rate, **more)

    losses = []
    for rate in (1e-6, 1.0) if kind == "AdamW" else (1e-4, 100.0):  # noqa: B007
        fit = trainer(tmp_path, callbacks=autopilot(), logger=True, max_epochs=16)
        fit.fit(Model(configure, 64), Loader(16, 16), held_out())
        guard = next(c for c in fit.callbacks if isinstance(c, DivergenceGuard))
        assert guard.rewinds == 0
        losses.append(float(fit.callback_metrics["val_loss"]))
    assert max(losses) < 0.5
    assert max(losses) == pytest.approx(min(losses), rel=1e-2)


def test_the_guard_judges_no_update_of_a_sweep(tmp_path: Path) -> None:
    guard, finder = DivergenceGuard(), llr.LRFinder(at=[0, 40])
    model = Model(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), 16)
    fit = trainer(tmp_path, callbacks=[guard, finder], max_epochs=12)
    fit.fit(model, Loader(16, 16), held_out())
    assert len(finder.findings) == 2
    assert (guard.skips, guard.rewinds) == (0, 0)
    # nor of the pauses between its trials
    swept = sum(len(finding.losses) for finding in finder.findings)
    assert guard.states[0].update == finder.ledger.updates(0) < 12 * 16 - swept
