"""What a notebook shows of a run, out of its own memory."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lightning_lr as llr
from lightning_lr.record.series import Series
from tests.faulty import BATCHES, Faulty
from tests.logged import Ends, groups, stairs, tensorboard
from tests.pool import Pool
from tests.small import Loader, Model, cosine, held_out, sgd, trainer


def lines(figure: Any) -> dict[str, Any]:
    """All named curves and marks of a figure."""
    return {line.get_label().strip(): line for axes in figure.axes for line in axes.get_lines()}


def labels(figure: Any) -> list[str]:
    return [axes.get_ylabel() for axes in figure.axes]


def test_rates_are_drawn_in_steps_with_what_changed_them(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    callbacks = [llr.Warmup(3), monitor]
    trainer(tmp_path, callbacks=callbacks, max_epochs=12).fit(Model(stairs), Loader(20))
    figure = monitor.plot()
    figure.savefig(tmp_path / "picture.png")
    rate = lines(figure)["lr-SGD"]
    assert rate.get_drawstyle() == "steps-post"
    assert figure.axes[0].get_yscale() == "log"
    at = dict(zip(*(values.tolist() for values in rate.get_data()), strict=True))
    for change in monitor.changes:
        assert at[change.step] == pytest.approx(change.new)
    # until the end
    assert max(at) == 240
    assert lines(figure)["Warmup (2)"].get_data()[0].tolist() == [1, 2]


def test_the_losses_are_those_that_the_loggers_have(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    fit = trainer(tmp_path, callbacks=[monitor], logger=tensorboard(tmp_path), max_epochs=3, log_every_n_steps=4)
    fit.fit(Model(cosine), Loader(10), held_out())
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb" / "version_0"), size_guidance={"scalars": 0})
    events.Reload()
    drawn = lines(monitor.plot())
    for name in ("train_loss", "val_loss"):
        written = {event.step: event.value for event in events.Scalars(name)}
        steps, values = drawn[name].get_data()
        assert values.tolist() == pytest.approx(list(written.values()))
        if name == "train_loss":
            assert steps.tolist() == list(written)


class Silent(Model):
    """Logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("accumulate", [1, 4])
def test_without_a_logger_and_without_a_logged_loss_there_is_the_one_returned(accumulate: int, tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    settings = {"log_every_n_steps": 1, "accumulate_grad_batches": accumulate, "max_epochs": 1}
    trainer(tmp_path, callbacks=[monitor], **settings).fit(Silent(sgd), Loader(8))
    _, values = lines(monitor.plot())["loss"].get_data()
    # of ten digits, at chance
    assert 2.0 < values[0] < 2.8


def test_losses_are_only_looked_at_where_lightning_looks_at_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = llr.LRMonitor()
    looked: list[int] = []

    add = Series.add

    def noted(self: Any, step: int, value: float) -> None:
        looked.append(step)
        add(self, step, value)

    monkeypatch.setattr("lightning_lr.monitoring.losses.Series.add", noted)
    trainer(tmp_path, callbacks=[monitor], log_every_n_steps=10, max_epochs=2).fit(Silent(sgd), Loader(20))
    assert sorted(set(looked)) == [0, 9, 19, 29, 39]


def test_a_spike_does_not_flatten_the_loss_and_is_marked(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    fit = trainer(tmp_path, callbacks=[monitor], log_every_n_steps=1, max_epochs=4)
    fit.fit(Faulty(faults={30: "loss"}), Loader(BATCHES, 16))
    figure = monitor.plot()
    low, high = figure.axes[labels(figure).index("loss")].get_ylim()
    assert high - low < 10.0
    drawn = lines(figure)
    (beyond,) = [line for name, line in drawn.items() if "beyond" in name]
    assert 30 in beyond.get_data()[0]
    # a line up to there and back would look like two spikes, where points lie apart
    assert not (drawn["loss"].get_data()[1] > high).any()


def test_incidents_are_marked_by_what_they_were(tmp_path: Path) -> None:
    monitor, guard = llr.LRMonitor(), llr.DivergenceGuard(snapshot_every=10, trials=False)
    fit = trainer(tmp_path, callbacks=[guard, monitor], max_epochs=6)
    fit.fit(Faulty(faults={20: "nan", 30: "grad", 40: "weight"}), Loader(BATCHES, 16))
    figure = monitor.plot()
    figure.savefig(tmp_path / "picture.png")
    (named,) = [axes for axes in figure.axes if axes.get_yticks().tolist() == [0, 1]]
    assert [label.get_text() for label in named.get_yticklabels()] == ["dropped (2)", "rewound (1)"]
    dropped, rewound, *_ = named.get_lines()
    assert [list(line.get_data()[0]) for line in (dropped, rewound)] == [[20, 30], [40]]


@pytest.mark.parametrize("error", [KeyError("broken"), KeyboardInterrupt()])
def test_after_a_crash_there_is_a_picture_and_a_summary(error: Any, tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    with pytest.raises((KeyError, KeyboardInterrupt, SystemExit)):
        trainer(tmp_path, callbacks=[llr.Warmup(3), monitor]).fit(Ends(error), Loader(10))
    assert "lr-SGD" in lines(monitor.plot())
    assert ("KeyError" in monitor._repr_html_()) == isinstance(error, KeyError)
    assert "<td>lr-SGD</td><td>0.1</td>" in monitor._repr_html_()


def test_before_any_fit_it_says_so(tmp_path: Path) -> None:
    monitor = llr.LRMonitor(momentum=True)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="LRMonitor has nothing to show yet: no update was made"):
            monitor.plot()
        assert "LRMonitor(momentum=True): no update was made yet" in monitor._repr_html_()
        # a run without a batch is none
        trainer(tmp_path, callbacks=[monitor], limit_train_batches=0).fit(Model(sgd), Loader(2))


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        parts = [("<b>$x_1$</b>", model.head.weight), ("_hidden", model.head.bias)]
        return torch.optim.SGD([{"params": [p], "name": name} for name, p in parts], lr=0.1)

    class Marked(Model):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("$loss^{", loss)
            return loss

    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[monitor], log_every_n_steps=1).fit(Marked(configure), Loader(4))
    figure = monitor.plot()
    # mathematics that is none would raise here
    figure.savefig(tmp_path / "picture.png")
    assert r"lr-SGD/<b>\$x_1\$</b>" in lines(figure)
    shown = monitor._repr_html_()
    assert "lr-SGD/&lt;b&gt;$x_1$&lt;/b&gt;" in shown
    assert "<b>" not in shown


def test_groups_have_a_curve_each_and_a_rate_of_zero_breaks_nothing(tmp_path: Path) -> None:
    def configure(model: Any) -> Any:
        optimizer = groups(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda k: float(k < 4), lambda k: 1.0])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[monitor]).fit(Model(configure), Loader(6))
    figure = monitor.plot()
    figure.savefig(tmp_path / "picture.png")
    assert {"lr-Adam/pg1", "lr-Adam/pg2"} <= lines(figure).keys()


def test_a_sweep_is_in_the_picture_and_its_trial_batches_are_no_losses(tmp_path: Path) -> None:
    monitor, finder = llr.LRMonitor(), llr.LRFinder(at=20, steps=20)
    fit = trainer(tmp_path, callbacks=[finder, monitor], log_every_n_steps=1, max_epochs=6)
    fit.fit(Model(sgd), Loader(BATCHES, 16))
    figure = monitor.plot()
    drawn = lines(figure)
    assert "loss" not in drawn
    assert max(drawn["train_loss"].get_data()[1]) < 10.0
    assert "LRFinder found (1)" in [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert len(drawn["tried by a sweep"].get_data()[0]) == len(finder.findings[0].rates)


def test_a_second_fit_is_drawn_and_not_the_first(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[monitor], max_epochs=2, log_every_n_steps=1).fit(Model(sgd), Loader(10))
    trainer(tmp_path, callbacks=[monitor], max_epochs=1, log_every_n_steps=1).fit(Model(sgd), Loader(5))
    assert max(lines(monitor.plot())["train_loss"].get_data()[0]) == 4


def test_a_copy_has_no_run(tmp_path: Path) -> None:
    monitor = llr.LRMonitor()
    trainer(tmp_path, callbacks=[monitor], log_every_n_steps=1).fit(Model(sgd), Loader(5))
    for copied in (copy.deepcopy(monitor), pickle.loads(pickle.dumps(monitor))):
        assert "no update was made yet" in copied._repr_html_()


def fit_on_a_rank(root: str) -> Any:
    monitor = llr.LRMonitor()
    settings = {"devices": 2, "strategy": "ddp", "log_every_n_steps": 1}
    trainer(root, callbacks=[llr.Warmup(3), monitor], **settings).fit(Model(sgd), Loader(6), held_out())
    drawn = lines(monitor.plot())
    return json.dumps([np.asarray(drawn["lr-SGD"].get_data()).tolist(), monitor._repr_html_()])


def test_every_rank_has_the_picture(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path))
    assert first == second


# memory ------------------------------------------------------------------------------------------------------------


def test_a_million_points_are_kept_in_a_few_with_every_dip() -> None:
    series = Series()
    for step in range(200_000):
        series.add(step, 0.5 if step in (77_777, 123_456) else 1.0)
    steps, values = series.points()
    assert len(series) <= 8000
    assert steps[values < 1.0].tolist() == [77_777, 123_456]
    assert (steps[0], steps[-1]) == (0, 199_999)


def test_a_rate_of_zero_has_a_mark_and_a_long_name_is_shortened(tmp_path: Path) -> None:
    """On a logarithmic axis there is no zero."""
    monitor, long = llr.LRMonitor(), "L" * 300

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD([{"params": module.parameters(), "name": long}], lr=0.1)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: float(k < 10)), "interval": "step"}
        ]

    trainer(tmp_path, callbacks=[monitor], max_epochs=2, log_every_n_steps=1).fit(Model(configure), Loader(20))
    drawn = lines(monitor.plot())
    zero = next(line for name, line in drawn.items() if name.endswith("is 0 from here"))
    assert zero.get_data()[0].tolist() == [10]
    assert max(map(len, drawn)) < 80
