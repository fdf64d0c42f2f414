"""What a user meets first: one line that makes all five, and what it says when something is amiss."""

from __future__ import annotations

import copy
import logging
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_utilities.core import rank_zero
from pytorch_lightning.callbacks import LearningRateMonitor
from torch.utils.data import DataLoader, IterableDataset

import lightning_lr as llr
from lightning_lr import autopilot
from lightning_lr.signals.metric_name import closest, looks_like_a_score, of_validation
from tests.namespaces import each, home, loaders
from tests.namespaces import module as module_of
from tests.namespaces import trainer as trainer_of
from tests.small import Loader, Model, digits, held_out, sgd, trainer

QUIET: dict[str, Any] = {"finder": None, "cooldown": None, "guard": None, "lr_monitor": None}
"""Leaves only plateau decay."""


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def console() -> Iterator[list[str]]:
    """The lines of information on the console."""
    kept, level = Kept(), rank_zero.log.level
    rank_zero.log.addHandler(kept)
    rank_zero.log.setLevel(logging.INFO)
    yield kept.lines
    rank_zero.log.removeHandler(kept)
    rank_zero.log.setLevel(level)


def ours(lines: list[str], word: str) -> list[str]:
    return [line for line in lines if word in line]


def warned(fit: Any, *args: Any) -> list[str]:
    """What a fit warns of, and the error that ends it, if one does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            fit.fit(*args)
        except llr.MetricError as error:
            return [*(str(w.message) for w in caught if "monitors" in str(w.message)), f"MetricError: {error}"]
    return [str(w.message) for w in caught if "monitors" in str(w.message)]


# a metric of which more is better ----------------------------------------------------------------------------------


class Accurate(Model):
    """Logs an accuracy that rises at every validation, as `val_acc`."""

    def on_validation_epoch_end(self) -> None:
        self.log("val_acc", 0.1 * (1 + self.current_epoch))


@pytest.mark.parametrize(
    ("callbacks", "words"),
    [
        (lambda: autopilot("val_acc", **{**QUIET, "plateau": {"patience": 0}}), "autopilot('val_acc', mode='max')"),
        (lambda: [llr.PlateauDecay("val_acc", patience=0)], "PlateauDecay('val_acc', mode='max')"),
    ],
)
def test_an_accuracy_is_not_minimised_but_asked_about(callbacks: Any, words: str, tmp_path: Path) -> None:
    model = Accurate(sgd)
    fit = trainer(tmp_path, callbacks=callbacks(), max_epochs=4, num_sanity_val_steps=1)
    (said,) = warned(fit, model, Loader(2), held_out())
    assert "'val_acc'" in said
    assert "changes no rate" in said
    assert words in said
    assert "mode='min'" in said
    assert {row[0] for row in model.trace} == {0.1}


def test_an_accuracy_in_one_line_is_maximised(tmp_path: Path) -> None:
    model = Accurate(sgd)
    callbacks = autopilot("val_acc", mode="max", **{**QUIET, "plateau": {"patience": 0}})
    assert warned(trainer(tmp_path, callbacks=callbacks, max_epochs=4), model, Loader(2), held_out()) == []
    assert {row[0] for row in model.trace} == {0.1}
    falls = autopilot("val_acc", mode="min", **{**QUIET, "plateau": {"patience": 0}})
    trainer(tmp_path, callbacks=falls, max_epochs=4).fit(model, Loader(2), held_out())
    assert [row[0] for row in model.trace[::2]] == pytest.approx([0.1, 0.1] * 2 + [0.1, 0.1, 0.03, 0.009])


def test_a_checkpoint_from_before_the_mode_was_given_is_taken_up(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.ckpt")
    fit = trainer(tmp_path, callbacks=[llr.PlateauDecay("val_acc", patience=0)], max_epochs=2)
    assert warned(fit, Accurate(sgd), Loader(2), held_out())
    fit.save_checkpoint(kept)
    model, plateau = Accurate(sgd), llr.PlateauDecay("val_acc", mode="min", patience=0)
    trainer(tmp_path, callbacks=[plateau], max_epochs=5).fit(model, Loader(2), held_out(), ckpt_path=kept)
    assert plateau.state.decays == 2


def test_to_write_the_mode_out_is_no_other_mode(tmp_path: Path) -> None:
    kept = str(tmp_path / "kept.ckpt")
    fit = trainer(tmp_path, callbacks=[llr.PlateauDecay("val_loss", threshold=0.99)], max_epochs=1)
    fit.fit(Model(sgd), Loader(2), held_out())
    fit.save_checkpoint(kept)

    def bad_checks(mode: Any) -> int:
        plateau = llr.PlateauDecay("val_loss", mode=mode, threshold=0.99)
        fit = trainer(tmp_path, callbacks=[plateau], max_epochs=2)
        fit.fit(Model(sgd), Loader(2), held_out(), ckpt_path=kept)
        return plateau.state.bad_checks

    # none is bad where there is no best of before to compare it with
    assert (bad_checks(None), bad_checks("min"), bad_checks("max")) == (1, 1, 0)


SCORES = (
    "acc val_acc val/accuracy val_acc1 top5 valAcc MulticlassF1Score val_AUROC map_50 mAP val-mIoU episode_reward r2"
)
NO_SCORES = "val_loss loss dice_loss error_rate top1_error perplexity accumulated recap f mapping val_rmse nll scale"


def test_what_looks_like_a_score() -> None:
    assert [name for name in SCORES.split() if not looks_like_a_score(name)] == []
    assert [name for name in NO_SCORES.split() if looks_like_a_score(name)] == []


# arguments of autopilot --------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    ({"patience": 3}, ["autopilot(plateau={'patience': 3})", "PlateauDecay"]),
    ({"lag": 1}, ["autopilot(guard={'lag': 1})", "DivergenceGuard"]),
    (
        {"steps": 20},
        ["autopilot(finder={'steps': 20})", "autopilot(warmup={'steps': 20})", "LRFinder", "Warmup"],
    ),
    ({"min_lr": 0.1}, ["autopilot(finder={'min_lr': 0.1})", "autopilot(plateau={'min_lr': 0.1})"]),
    ({"findr": None}, ["'findr'", "did you mean 'finder'"]),
    ({"moniter": "x"}, ["did you mean 'monitor'"]),
    ({"divergence_guard": None}, ["did you mean 'guard'"]),
    ({"patince": 3}, ["did you mean autopilot(plateau={'patience': 3})"]),
    ({"zebra": 3}, ["'zebra'", "monitor, mode, finder, warmup, cooldown, plateau, guard, lr_monitor"]),
    (
        {"finder": {"stps": 5}},
        ["autopilot(finder={'stps': 5}): LRFinder has no argument 'stps', did you mean 'steps'?"],
    ),
    ({"finder": {"patience": 5}}, ["LRFinder has no argument 'patience'", "write autopilot(plateau={'patience': 5})"]),
    (
        {"name": "x"},
        [
            "LRFinder, Warmup, Cooldown, PlateauDecay, DivergenceGuard and LRMonitor have",
            "autopilot(guard={'name': 'x'})",
        ],
    ),
    ({"finder": {"steps": 5}}, ["autopilot(finder={'steps': 5}): steps must be a whole number >= 20"]),
    ({"finder": {"at": 2.5}}, ["autopilot(finder={'at': 2.5}): "]),
    ({"plateau": {"factor": 2}}, ["autopilot(plateau={'factor': 2}): factor must", "write autopilot(plateau=None)"]),
    ({"warmup": {"steps": 0}}, ["autopilot(warmup={'steps': 0}): ", "for no warm-up, write autopilot(warmup=None)"]),
    ({"warmup": {"steps": 5, "epochs": 1}}, ["autopilot(warmup={'steps': 5, 'epochs': 1}): give exactly one"]),
    ({"guard": {"name": "a/b"}}, ["autopilot(guard={'name': 'a/b'}): name must be a word"]),
    ({"lr_monitor": {"logging_interval": "batch"}}, ["autopilot(lr_monitor={'logging_interval': 'batch'}): "]),
    ({"guard": True}, ["autopilot(guard={})"]),
    ({"warmup": 100}, ["warmup must be a dict", "autopilot(warmup={'steps': 100})"]),
    ({"lr_monitor": LearningRateMonitor()}, ["lr_monitor must be a dict", "a callback of lightning_lr"]),
    ({"mode": "best"}, ["autopilot('val_loss', mode='best'): mode must be 'min' or 'max', got 'best'"]),
    ({"monitor": ""}, ["autopilot(''): monitor must be the name of a logged metric"]),
    ({"mode": "max", "plateau": llr.PlateauDecay("val_acc")}, ["mode='max'", "PlateauDecay(mode='max')"]),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[str(list(given)) for given, _ in REFUSED])
def test_an_argument_that_autopilot_has_not_is_told_where_it_goes(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        autopilot(**given)
    said = str(caught.value)
    assert [word for word in words if word not in said] == [], said
    assert re.findall(r"leave [A-Z]\w+ out|object at 0x\w+>}", said) == []


# a metric that is not there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("checks", [0, 2])
@pytest.mark.parametrize("monitor", ["val_los", "val_accuracy", "val_loss_x"])
def test_a_metric_that_validation_lacks_is_told_when_it_has_first_run(
    checks: int, monitor: str, tmp_path: Path
) -> None:
    model = Model(sgd)
    fit = trainer(tmp_path, callbacks=autopilot(monitor, mode="min", **QUIET), num_sanity_val_steps=checks)
    told_at: list[int] = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: told_at.append(fit.global_step)  # type: ignore[assignment]
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", message=".*monitors")
        with pytest.raises(llr.MetricError, match=f"'{monitor}', which was never logged.*train_loss, val_loss"):
            fit.fit(model, Loader(2), held_out())
    assert told_at == ([0] if checks else [2])


def test_the_metric_that_was_meant_is_named_in_the_words_of_the_user(tmp_path: Path) -> None:
    for callbacks, words in (
        (autopilot("val_los", **QUIET), "autopilot('val_loss')"),
        ([llr.PlateauDecay("val_los")], "PlateauDecay('val_loss')"),
    ):
        fit = trainer(tmp_path, callbacks=callbacks, num_sanity_val_steps=1)
        first, second = warned(fit, Model(sgd), Loader(2), held_out())
        assert "'val_los'" in first
        assert "it logged val_loss" in first
        for said in (first, second):
            assert "Did you mean 'val_loss'?" in said
            assert words in said
        assert second.startswith("MetricError")


class TwoLoaders(Model):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx)


def test_of_several_validation_loaders_one_is_to_be_named(tmp_path: Path) -> None:
    fit = trainer(tmp_path, callbacks=autopilot(**QUIET), num_sanity_val_steps=1)
    first, _ = warned(fit, TwoLoaders(sgd), Loader(2), [held_out(), held_out()])
    assert "autopilot('val_loss/dataloader_idx_0')" in first


class Elsewhere(Model):
    """Logs one metric in training, by epoch, under any name; nothing but `val_loss` in validation."""

    def __init__(self, name: str, hook: str = "step") -> None:
        super().__init__(sgd)
        self.logged, self.hook = name, hook

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.hook == "step":
            self.log(self.logged, 1.0, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        if self.hook == "end":
            self.log(self.logged, 1.0)


@pytest.mark.parametrize("hook", ["step", "end"])
@pytest.mark.parametrize("monitor", ["train_loss_mean", "loss", "train_accuracy", "energy"])
@pytest.mark.parametrize("checks", [0, 1])
def test_a_metric_of_training_is_not_missed_in_validation(checks: int, monitor: str, hook: str, tmp_path: Path) -> None:
    plateau = llr.PlateauDecay(monitor, mode="min", patience=0)
    fit = trainer(tmp_path, callbacks=[plateau], num_sanity_val_steps=checks, max_epochs=3)
    assert warned(fit, Elsewhere(monitor, hook), Loader(2), held_out()) == []
    assert plateau.state.decays == 2


def test_a_metric_that_only_later_validations_log_still_works(tmp_path: Path) -> None:
    class Later(Model):
        def on_validation_epoch_end(self) -> None:
            if not self.trainer.sanity_checking:
                self.log("val_bleu", 1.0)

    plateau = llr.PlateauDecay("val_bleu", mode="max", patience=0)
    fit = trainer(tmp_path, callbacks=[plateau], num_sanity_val_steps=1, max_epochs=3)
    assert len(warned(fit, Later(sgd), Loader(2), held_out())) == 1
    assert plateau.state.decays == 2


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}])
def test_without_validation_the_run_goes_on_without_decay_and_says_so_at_its_start(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    for callbacks, words in (
        (autopilot(**QUIET), ["autopilot('train_loss')", "autopilot(plateau=None)"]),
        ([llr.PlateauDecay()], ["PlateauDecay('train_loss')", "leave PlateauDecay out"]),
    ):
        model = Model(sgd)
        fit = trainer(tmp_path, callbacks=callbacks, max_epochs=3, **settings)
        (said,) = warned(fit, model, Loader(2), *([held_out()] if settings else []))
        assert "no validation" in said
        assert [word for word in words if word not in said] == []
        assert len(model.trace) == 6


def test_without_validation_a_metric_of_that_name_may_come_from_training(tmp_path: Path) -> None:
    plateau = llr.PlateauDecay("val_loss", patience=0)
    fit = trainer(tmp_path, callbacks=[plateau], max_epochs=3)
    assert len(warned(fit, Elsewhere("val_loss"), Loader(2))) == 1
    assert plateau.state.decays == 2


def test_the_names_that_are_close() -> None:
    assert closest("valid_loss", ["train_loss", "val_loss"], 0.8) == "val_loss"
    assert closest("train_loss", ["val_loss"], 0.8) is None
    assert [of_validation(name) for name in ("val_loss", "my/val/x", "valLoss", "interval", "value")] == [
        True,
        True,
        True,
        False,
        False,
    ]


# no logger, and Lightning's own arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["LRMonitor", "autopilot"])
def test_without_a_logger_the_record_is_kept_and_said_to_be(made: str, console: list[str], tmp_path: Path) -> None:
    callbacks = (
        autopilot(finder=None, cooldown=None, warmup={"steps": 3})
        if made == "autopilot"
        else [llr.Warmup(3), llr.LRMonitor()]
    )
    monitor: Any = callbacks[-1]
    trainer(tmp_path, callbacks=callbacks, logger=False).fit(Model(sgd), Loader(4), held_out())
    assert monitor.rates == {"lr-SGD": pytest.approx(0.1)}
    assert [change.step for change in monitor.changes] == [1, 2]
    assert any("Warmup" in line for line in monitor.story)
    (said,) = ours(console, "no logger")
    assert "nothing is written" in said
    where = "is autopilot(...)[-1]" if made == "autopilot" else "is your LRMonitor"
    assert where in said
    for place in ("story", "changes", "rates"):
        assert f"monitor.{place}" in said


def test_with_a_logger_nothing_is_said_of_it(console: list[str], tmp_path: Path) -> None:
    trainer(tmp_path, callbacks=[llr.LRMonitor()], logger=True).fit(Model(sgd), Loader(2))
    assert ours(console, "LRMonitor") == []


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("step",), {}),
        (("epoch", True, True), {}),
        ((None, True), {}),
        ((), {"logging_interval": "step", "log_momentum": True, "log_weight_decay": True}),
    ],
)
def test_the_monitor_takes_the_arguments_of_lightnings_own(
    args: tuple[Any, ...], kwargs: dict[str, Any], console: list[str], tmp_path: Path
) -> None:
    stock, monitor = LearningRateMonitor(*args, **kwargs), llr.LRMonitor(*args, **kwargs)
    assert (monitor.momentum, monitor.weight_decay) == (stock.log_momentum, stock.log_weight_decay)
    model = Model(lambda m: sgd(m, momentum=0.9))
    trainer(tmp_path, callbacks=[monitor], max_epochs=1).fit(model, Loader(2))
    said = ours(console, "logging_interval")
    assert len(said) == (stock.logging_interval is not None)
    if said:
        assert f"LRMonitor(logging_interval={stock.logging_interval!r})" in said[0]
        assert "when they change" in said[0]


def test_an_interval_that_lightnings_monitor_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="logging_interval must be None, 'step' or 'epoch', got 'batch'"):
        llr.LRMonitor("batch")  # pyright: ignore[reportArgumentType]


# a list in a list, and what is printed ------------------------------------------------------------------------------


@each
def test_a_list_in_the_list_of_callbacks_is_told_how_to_write_it(namespace: str, tmp_path: Path) -> None:
    try:
        fit = trainer_of(namespace, tmp_path, [autopilot()])
    except ValueError as error:
        pytest.skip(f"this Lightning refuses what is no callback before it asks for anything: {error}")
    with pytest.raises(AttributeError) as caught:
        fit.fit(module_of(namespace), *loaders())
    said = str(caught.value)
    assert "callbacks=autopilot(...)" in said
    assert "callbacks=[*autopilot(...), other]" in said


@each
def test_what_autopilot_gives_is_a_list_in_every_other_way(namespace: str, tmp_path: Path) -> None:
    made = autopilot(finder=None, guard=None, plateau=None)
    assert isinstance(made, list)
    assert made == list(made)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made), copy.copy(made)):
        assert type(other) is type(made)
        assert [repr(callback) for callback in other] == [repr(callback) for callback in made]
        assert [callback.option for callback in other] == ["cooldown", "lr_monitor"]
    own = home(namespace).callbacks.LambdaCallback()
    for callbacks in ([*made, own], made + [own], [own] + made):  # noqa: RUF005
        fit = trainer_of(namespace, tmp_path, callbacks, max_epochs=1)
        assert all(callback in fit.callbacks for callback in callbacks)
    trainer_of(namespace, tmp_path, made, max_epochs=1).fit(module_of(namespace), *loaders())
    assert not hasattr(made, "state_dict")


PRINTED: list[tuple[Any, str]] = [
    (lambda: llr.LRFinder(), "LRFinder()"),
    (lambda: llr.LRFinder(at=[0, 500], steps=40), "LRFinder(at=[0, 500], steps=40)"),
    (lambda: llr.Warmup(100), "Warmup(steps=100)"),
    (
        lambda: llr.Warmup(fraction=0.1, shape="cosine", name="Ramp"),
        "Warmup(fraction=0.1, shape='cosine', name='Ramp')",
    ),
    (lambda: llr.Cooldown(epochs=1.5, on_stop=True), "Cooldown(epochs=1.5, on_stop=True)"),
    (lambda: llr.PlateauDecay(), "PlateauDecay()"),
    (lambda: llr.PlateauDecay("val_acc", mode="max"), "PlateauDecay(monitor='val_acc', mode='max')"),
    (lambda: llr.DivergenceGuard(backoff=0.3), "DivergenceGuard(backoff=0.3)"),
    (lambda: llr.LRMonitor("step", momentum=True), "LRMonitor(logging_interval='step', momentum=True)"),
    (
        lambda: autopilot("val_acc", mode="max", guard=None, lr_monitor=None),
        "[LRFinder(), Cooldown(fraction=0.3), PlateauDecay(monitor='val_acc', mode='max', factor=0.3, patience=3)]",
    ),
]


@pytest.mark.parametrize(("made", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_a_callback_prints_as_it_was_written(made: Any, text: str) -> None:
    assert repr(made()) == text
    assert repr(eval(text, vars(llr).copy())) == text


def test_a_subclass_prints_what_it_gave_its_parent() -> None:
    class Mine(llr.Warmup):
        def __init__(self, steps: int = 3) -> None:
            super().__init__(steps, shape="cosine")

    assert repr(Mine(5)) == "Mine(steps=5, shape='cosine')"


# every message that names a remedy ----------------------------------------------------------------------------------


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        images, labels = digits()
        yield from zip(images, labels, strict=True)


def only(**kept: Any) -> list[Any]:
    """Autopilot with nothing but what is named."""
    return autopilot(**{"finder": None, "cooldown": None, "plateau": None, "guard": None, "lr_monitor": None, **kept})


def bare(model: Any) -> Any:
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


Case = tuple[list[Any], dict[str, Any], bool, str]
MESSAGES: dict[str, Case] = {
    # callbacks, settings of the trainer, whether the data have no length, words of the message
    "length by fraction": (only(warmup={}), {"max_epochs": 1}, True, "autopilot(warmup={'steps': 100})"),
    "length by epochs": (
        only(warmup={"epochs": 1}),
        {"max_steps": 5, "max_epochs": -1},
        True,
        "autopilot(warmup={'steps': 100})",
    ),
    "no end": (only(warmup={}), {"max_epochs": -1}, False, "autopilot(warmup={'steps': 100})"),
    "too long": (only(warmup={"steps": 99}), {"max_epochs": 1}, False, "autopilot(warmup={'fraction': 0.1})"),
    "no beta2": (only(warmup={"steps": "auto"}), {}, False, "autopilot(warmup={'fraction': 0.05})"),
    "memory": (only(guard={"memory_limit": 10}), {}, False, "autopilot(guard={'memory_limit': "),
    "memory, or without": (only(guard={"memory_limit": 10}), {}, False, "or write autopilot(guard=None)"),
    "no momentum": (only(lr_monitor={"momentum": True}), {}, False, "autopilot(lr_monitor={'momentum': True})"),
    "two monitors": (
        [*only(lr_monitor={}), LearningRateMonitor()],
        {"logger": True},
        False,
        "write autopilot(lr_monitor=None)",
    ),
    "one name": (
        only(warmup={"name": "x"}, plateau={"name": "x", "monitor": "train_loss"}),
        {},
        False,
        "autopilot(plateau={'name': '...'})",
    ),
    "the monitor of Lightning": (
        [*only(warmup={"steps": 2}), LearningRateMonitor()],
        {"logger": True},
        False,
        "autopilot(lr_monitor={})",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_every_remedy_is_in_the_words_of_autopilot(case: str, console: list[str], tmp_path: Path) -> None:
    callbacks, settings, endless, words = MESSAGES[case]
    said: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            trainer(tmp_path, callbacks=callbacks, **settings).fit(
                Model(bare if case == "no momentum" else sgd),
                DataLoader(Endless(), batch_size=8) if endless else Loader(2),
            )
        except ValueError as error:
            said = [str(error)]
    said += [str(warning.message) for warning in caught] + console
    assert ours(said, words), said
