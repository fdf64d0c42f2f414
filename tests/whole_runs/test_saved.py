"""Checkpoints: evaluated from, resumed with other arguments, optimizers and releases."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_lr as llr
from tests.small import Loader, Model, held_out, pl, sgd, trainer

MAKE: dict[str, Callable[[], list[Any]]] = {
    "Warmup": lambda: [llr.Warmup(20)],
    # of a fall over one update, which has the rate in full, a run that is made longer takes nothing back
    "Cooldown": lambda: [llr.Cooldown(1)],
    "PlateauDecay": lambda: [llr.PlateauDecay("val_loss", patience=1)],
    "DivergenceGuard": lambda: [llr.DivergenceGuard(snapshot_every=10)],
    "LRFinder": lambda: [llr.LRFinder(steps=20, progress_bar=False)],
    "LRMonitor": lambda: [llr.LRMonitor()],
    "autopilot": lambda: llr.autopilot(finder={"steps": 20, "progress_bar": False}, warmup={"steps": 9}),
}
LOGGED = {"logger": True, "max_epochs": 8}


class Judged(Model):
    """Can be validated, tested and used for predictions."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def fitted(root: Path, callbacks: list[Any], model: Any = None, **settings: Any) -> Any:
    fit = trainer(root, callbacks=callbacks, **{**LOGGED, **settings})
    fit.fit(model or Judged(sgd), Loader(), held_out())
    return fit


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("same", [True, False], ids=["same trainer", "fresh trainer"])
def test_a_checkpoint_can_be_evaluated_and_then_resumed(name: str, same: bool, tmp_path: Path) -> None:
    whole = Judged(sgd)
    fitted(tmp_path, MAKE[name](), whole, max_epochs=10)
    # the rate that a finder suggests depends on the run's length: beside one the run is not made longer, but stopped
    stopped = any(isinstance(callback, llr.LRFinder) for callback in MAKE[name]())
    cut = [Stop(48)] if stopped else []
    fit = fitted(tmp_path, [*MAKE[name](), *cut], max_epochs=10 if stopped else 8)
    path = tmp_path / "a.ckpt"
    fit.save_checkpoint(path)
    for evaluate in ("validate", "test", "predict"):
        judge = fit if same else trainer(tmp_path, callbacks=MAKE[name](), **LOGGED)
        verbose = {} if evaluate == "predict" else {"verbose": False}
        getattr(judge, evaluate)(Judged(sgd), held_out(), ckpt_path=str(path), **verbose)
        if not same:
            judge.save_checkpoint(tmp_path / "b.ckpt")
            states = [torch.load(tmp_path / f"{which}.ckpt", weights_only=True)["callbacks"] for which in "ab"]
            assert states[0].keys() == states[1].keys()
            ours = [callback.state_key for callback in MAKE[name]()]
            assert all(repr(states[0][key]) == repr(states[1][key]) for key in ours)
    judge.fit_loop.max_epochs = 10
    # the oldest Lightning would end the next run, too
    judge.should_stop = False
    resumed = Judged(sgd)
    judge.fit(resumed, Loader(), held_out(), ckpt_path=str(path))
    assert all(map(torch.equal, whole.weights(), resumed.weights()))
    assert resumed.trace == whole.trace[-len(resumed.trace) :]


def edited(root: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    fit = fitted(root, MAKE[name]())
    fit.save_checkpoint(root / "a.ckpt")
    checkpoint = torch.load(root / "a.ckpt", weights_only=True)
    edit(checkpoint["callbacks"][f"{name}[{name}]"])
    torch.save(checkpoint, root / "edited.ckpt")
    return root / "edited.ckpt"


OTHER = {
    "later": ("Warmup", lambda s: s.update(version=99, release="9.0"), "lightning_lr 9.0 .* version 99"),
    "earlier": (
        "Warmup",
        lambda s: (s.update(version=1), s.pop("release")),
        "an earlier release .*version 1",
    ),
    "a ledger": ("Warmup", lambda s: s["ledger"].update(version=99), "the ledger of rates is saved in version 99"),
    "a plateau": ("PlateauDecay", lambda s: s["own"]["policy"].update(version=9), "PlateauState is saved in version 9"),
    "a key fewer": ("PlateauDecay", lambda s: s["own"]["policy"].pop("since_test"), "other entries .* since_test"),
    "a key more": ("PlateauDecay", lambda s: s["own"]["policy"].update(slope=1.0), "other entries .* slope"),
    "an agenda": (
        "LRFinder",
        lambda s: s["own"]["agenda"].update(version=99),
        "SweepScheduleState .* version 99",
    ),
    "a finding": ("LRFinder", lambda s: s["own"]["findings"][0].update(version=9), "Finding is saved in version 9"),
    "more flags": ("DivergenceGuard", lambda s: s["own"]["flags"].append(False), "its entries are not those"),
    "no clocks": ("DivergenceGuard", lambda s: s["own"].pop("keeper"), "its entries are not those"),
    "a judge": (
        "DivergenceGuard",
        lambda s: s["own"]["states"][0].update(version=99),
        "DivergenceState is saved in vers",
    ),
    "no clock": ("Cooldown", lambda s: s["own"].pop("clock"), "its entries are not those"),
    "a longer clock": ("Cooldown", lambda s: s["own"]["clock"].append(1), "its entries are not those"),
    "no restarts": ("Warmup", lambda s: s["own"].pop("restarted"), "its entries are not those"),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_state_of_another_release_is_refused_in_words_and_a_new_name_starts_afresh(what: str, tmp_path: Path) -> None:
    name, edit, words = OTHER[what]
    path = edited(tmp_path, name, edit)
    with pytest.raises(ValueError, match=words) as refused:
        trainer(tmp_path, callbacks=MAKE[name](), max_epochs=9).fit(Model(sgd), Loader(), held_out(), ckpt_path=path)
    assert f"start {name} afresh under another name: {name}(name='{name}2')" in str(refused.value)
    (callback,) = MAKE[name]()
    callback.__init__(**{**callback.arguments, "name": f"{name}2"})
    resumed = trainer(tmp_path, callbacks=[callback], max_epochs=16)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint|holds no state of"):
        resumed.fit(Model(sgd), Loader(), held_out(), ckpt_path=path)
    assert resumed.current_epoch == 16


@pytest.mark.parametrize("evaluate", ["validate", "test"])
def test_a_state_of_another_release_stands_in_the_way_of_no_evaluation(evaluate: str, tmp_path: Path) -> None:
    path = edited(tmp_path, "Warmup", lambda state: state.update(version=99))
    judge = trainer(tmp_path, callbacks=MAKE["Warmup"]())
    assert getattr(judge, evaluate)(Judged(sgd), held_out(), ckpt_path=str(path), verbose=False)


def resumed_with(root: Path, before: list[Any], after: list[Any], model: Any = None, **settings: Any) -> Any:
    """A run of 12 updates with some callbacks, resumed for 12 more with others; the model's trace is of both."""
    whole = Model(sgd)
    fit = fitted(root, before, whole, **{"max_epochs": 2, **settings})
    fit.save_checkpoint(root / "a.ckpt")
    model = model or Model(sgd)
    trainer(root, callbacks=after, max_epochs=4, logger=True).fit(
        model, Loader(), held_out(), ckpt_path=root / "a.ckpt"
    )
    return [rates[0] for rates in [*whole.trace, *model.trace]]


@pytest.mark.parametrize(
    ("before", "after", "ramp"),
    [
        ({"steps": 20}, {"steps": 40}, 40),
        ({"steps": 40}, {"steps": 16}, 16),
        ({"epochs": 3.0}, {"epochs": 4.0}, 24),
        ({"fraction": 1.0}, {"fraction": 0.75}, 18),
        ({"fraction": 1.0}, {"fraction": 1.0}, 12),
    ],
    ids=str,
)
def test_a_resumed_warmup_has_its_new_length(before: Any, after: Any, ramp: int, tmp_path: Path) -> None:
    warmup = llr.Warmup(**after)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*never reaches its full height")
        rates = resumed_with(tmp_path, [llr.Warmup(**before)], [warmup])
    assert rates[12:] == pytest.approx([0.1 * min(1.0, (k + 1) / ramp) for k in range(12, 24)])


def test_changed_arguments_are_told_in_one_line(tmp_path: Path) -> None:
    after = [
        llr.PlateauDecay("val_loss", factor=0.2, patience=7),
        llr.DivergenceGuard(snapshot_every=10),
        llr.LRMonitor(),
    ]
    before = [llr.PlateauDecay("val_loss", factor=0.5), llr.DivergenceGuard(snapshot_every=10), llr.LRMonitor()]
    resumed_with(tmp_path, before, after)
    line = "PlateauDecay resumes with other arguments than it was saved with, and the new ones hold: "
    told = [said for said in after[-1].story if "other arguments" in said]
    assert told == [f"step 12: {line}factor 0.5 -> 0.2, patience 10 -> 7"]


class Worse(Model):
    """Its metrics get worse at every check."""

    def on_validation_epoch_end(self) -> None:
        self.log("rising", float(self.current_epoch))
        self.log("falling", -float(self.current_epoch))


def test_a_plateau_with_another_factor_decays_by_it_and_keeps_the_decays_so_far(tmp_path: Path) -> None:
    def callbacks(factor: float) -> list[Any]:
        return [llr.PlateauDecay("rising", factor=factor, patience=0)]

    whole = Worse(sgd)
    fit = fitted(tmp_path, callbacks(0.5), whole, max_epochs=4)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    model = Worse(sgd)
    trainer(tmp_path, callbacks=callbacks(0.1), max_epochs=6).fit(
        model, Loader(), held_out(), ckpt_path=tmp_path / "a.ckpt"
    )
    assert [rates[0] for rates in model.trace[::6]] == pytest.approx([0.1 * 0.5**3, 0.1 * 0.5**3 * 0.1])


def test_a_plateau_with_another_mode_forgets_the_best_of_the_old(tmp_path: Path) -> None:
    fit = fitted(tmp_path, [llr.PlateauDecay("falling", mode="max", patience=0)], Worse(sgd), max_epochs=4)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    model, plateau = Worse(sgd), llr.PlateauDecay("falling", mode="min", patience=0)
    trainer(tmp_path, callbacks=[plateau], max_epochs=7).fit(model, Loader(), held_out(), ckpt_path=tmp_path / "a.ckpt")
    assert plateau.state.decays == 3
    assert [rates[0] for rates in model.trace] == pytest.approx([0.1 * 0.1**3] * 18)


def test_a_sweep_that_is_resumed_with_other_bounds_starts_over(tmp_path: Path) -> None:
    before, after = (llr.LRFinder(steps=20, max_lr=most, progress_bar=False) for most in (10.0, 1.0))
    fit = trainer(tmp_path, callbacks=[before, Stop(12)], max_epochs=8)
    with pytest.warns(UserWarning, match="the run ended after 10 updates of a sweep"):
        fit.fit(Model(sgd), Loader(), held_out())
    trainer(tmp_path, callbacks=[after], max_epochs=8).fit(
        Model(sgd), Loader(), held_out(), ckpt_path=tmp_path / "stop.ckpt"
    )
    assert after.result is not None
    assert max(after.result.rates) <= 1.0
    assert len(after.findings) == 1


class Stop(pl.Callback):
    """Saves a checkpoint and ends the run after so many batches."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.batches:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stop.ckpt")
            trainer.should_stop = True


class Bad(Model):
    """Every loss is NaN from a batch on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (float("nan") if self.trainer.global_step >= 20 else 1.0)


def test_a_run_that_was_given_up_trains_again_when_it_is_resumed_and_says_so(tmp_path: Path) -> None:
    fit = fitted(
        tmp_path, [llr.DivergenceGuard(on_give_up="stop", snapshot_every=5, trials=False)], Bad(sgd), max_epochs=80
    )
    assert fit.should_stop
    fit.save_checkpoint(tmp_path / "a.ckpt")
    guard, model = llr.DivergenceGuard(on_give_up="stop", snapshot_every=5, trials=False), Model(sgd)
    resumed = trainer(tmp_path, callbacks=[guard], max_epochs=fit.current_epoch + 5)
    with pytest.warns(UserWarning, match="saved after DivergenceGuard had given up: it judges the run anew"):
        resumed.fit(model, Loader(), held_out(), ckpt_path=tmp_path / "a.ckpt")
    assert len(model.trace) >= 24
    assert any(not torch.equal(a, b) for a, b in zip(model.weights(), fit.lightning_module.weights(), strict=True))


class Halves(Model):
    """One optimizer or two, one param group or two."""

    def __init__(self, optimizers: int, groups: int) -> None:
        super().__init__(sgd)
        self.automatic_optimization = False
        self.optimizers_made, self.groups_made = optimizers, groups

    def configure_optimizers(self) -> Any:
        parts = [[self.head.weight], [self.head.bias]]
        if self.optimizers_made == 2:
            return [torch.optim.SGD(part, lr=0.1) for part in parts]
        groups = [{"params": part} for part in parts] if self.groups_made == 2 else [{"params": [*parts[0], *parts[1]]}]
        return torch.optim.SGD(groups, lr=0.1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.trainer.optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("before", "after"), [((1, 1), (2, 1)), ((2, 1), (1, 1)), ((1, 1), (1, 2)), ((1, 2), (1, 1))], ids=str
)
@pytest.mark.filterwarnings("ignore:DivergenceGuard")
def test_a_checkpoint_of_other_optimizers_or_groups_goes_on_in_words(before: Any, after: Any, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        finder = {"steps": 20, "progress_bar": False, "optimizer": 0}
        return llr.autopilot("val_loss", finder=finder, warmup={"steps": 30}, guard={"snapshot_every": 5})

    fit = fitted(tmp_path, callbacks(), Halves(*before), max_epochs=6)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["optimizer_states"] = []  # what people do who change the optimizers
    torch.save(checkpoint, tmp_path / "b.ckpt")
    resumed = trainer(tmp_path, callbacks=callbacks(), max_epochs=30, logger=True)
    with pytest.warns(UserWarning, match="the rates were saved for .* optimizer.* start afresh"):
        resumed.fit(Halves(*after), Loader(), held_out(), ckpt_path=tmp_path / "b.ckpt")
    assert resumed.current_epoch == 30
