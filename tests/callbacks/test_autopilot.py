"""All together."""

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


def test_autopilot_is_all_but_a_warm_up_and_each_can_be_changed_replaced_or_left_out() -> None:
    assert names(autopilot()) == ["LRFinder", "Cooldown", "PlateauDecay", "DivergenceGuard", "LRMonitor"]
    own = llr.Warmup(3)
    made = autopilot("val_accuracy", warmup=own, plateau={"mode": "max"}, cooldown=None, guard=None, lr_monitor=False)
    assert names(made) == ["LRFinder", "Warmup", "PlateauDecay"]
    assert made[1] is own
    plateau = made[2]
    assert (plateau.monitor, plateau.policy.mode) == ("val_accuracy", "max")
    assert (plateau.policy.patience, plateau.decay_factor) == (3, 0.3)
    assert autopilot(warmup={"steps": 7})[1].steps == 7
    assert autopilot(warmup={"shape": "cosine"})[1].fraction == 0.05
    assert autopilot(cooldown={"steps": 7})[1].fraction is None
    assert autopilot(cooldown={"shape": "cosine"})[1].fraction == 0.3


def one_rate(module: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def scheduled(module: Any) -> Any:
    optimizer = one_rate(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1000)]


class Unsized(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Loader(8))


@pytest.mark.parametrize(
    ("configure", "settings", "falls"),
    [(one_rate, {}, True), (scheduled, {}, False), (one_rate, {"loader": Unsized()}, False)],
    ids=["plain", "a schedule of one's own", "unknown length"],
)
def test_the_rate_falls_at_the_end_where_that_is_known_and_nobody_else_sees_to_it(
    configure: Any, settings: dict[str, Any], falls: bool, tmp_path: Path
) -> None:
    loader = settings.get("loader") or Loader(8)
    model = Model(configure, 8)
    callbacks = autopilot(finder=None, plateau=None, guard=None)
    fit = trainer(tmp_path, callbacks=callbacks, max_epochs=5)
    fit.fit(model, torch.utils.data.DataLoader(loader, batch_size=None) if isinstance(loader, Unsized) else loader)
    rates = [row[0] for row in model.trace]
    assert rates[:28] == [0.1] * 28
    assert rates[28:] == pytest.approx([0.1 * (12 - i) / 12 for i in range(12)] if falls else [0.1] * 12)
    assert callbacks[0].rests == (not falls)


def test_a_cooldown_that_was_asked_for_is_not_left_out_in_silence(tmp_path: Path) -> None:
    callbacks = autopilot(finder=None, plateau=None, guard=None, cooldown={"fraction": 0.5})
    loader = torch.utils.data.DataLoader(Unsized(), batch_size=None)
    with pytest.raises(ValueError, match="autopilot.cooldown=.* needs to know the length of the run"):
        trainer(tmp_path, callbacks=callbacks, max_epochs=5).fit(Model(one_rate, 8), loader)


class Flat(Model):
    """A loss that no rate changes, and a metric that never improves."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * 0.0 + 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0)


def test_a_rate_that_nobody_found_is_not_lowered_on_a_plateau(tmp_path: Path) -> None:
    model = Flat(one_rate, 8)
    callbacks = autopilot(cooldown=None, guard=None, lr_monitor=None)
    trainer(tmp_path, callbacks=callbacks, max_epochs=25).fit(model, Loader(8, 8), held_out())
    assert callbacks[0].result.refusal
    assert {row[0] for row in model.trace[70:]} == {0.1}
    alone = Flat(one_rate, 8)
    trainer(tmp_path, callbacks=[llr.PlateauDecay(patience=3, factor=0.3)], max_epochs=25).fit(
        alone, Loader(8, 8), held_out()
    )
    assert min(row[0] for row in alone.trace) < 0.1


def test_what_autopilot_does_not_know_is_refused_with_what_it_knows() -> None:
    with pytest.raises(
        ValueError, match="no argument 'findr', did you mean 'finder'. It takes monitor, mode, finder, warmup, cooldown"
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
    guard, finder = DivergenceGuard(), llr.LRFinder(at=[0, 40], steps=60)
    model = Model(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), 16)
    fit = trainer(tmp_path, callbacks=[guard, finder], max_epochs=12)
    fit.fit(model, Loader(16, 16), held_out())
    assert len(finder.findings) == 2
    assert (guard.skips, guard.rewinds) == (0, 0)
    # nor of the pauses between its trials
    swept = sum(len(finding.losses) for finding in finder.findings)
    assert guard.states[0].update == finder.ledger.updates(0) < 12 * 16 - swept
