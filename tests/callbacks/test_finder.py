"""The finder: a rate found inside the run, and no other trace."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn

import lightning_lr as llr
from tests.pool import Pool
from tests.small import Loader, Model, Sharded, cosine, digits, held_out, sgd, trainer

pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed from", "ignore:Checkpoint directory .* exists")
SHORT = {"steps": 30, "min_lr": 1e-4}


def momentum(module: Any, lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)


def adamw(module: Any, lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=lr)


class Stateful(Model):
    """Everything that a training step may change: batch norm, dropout, a torchmetric, random numbers of three kinds."""

    def __init__(self, configure: Any) -> None:
        super().__init__(configure, 16)
        self.norm, self.drop = nn.BatchNorm1d(64), nn.Dropout(0.2)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        random.random(), np.random.rand()
        logits = self(self.drop(self.norm(batch[0])))
        self.accuracy(logits, batch[1])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss


def everything(fit: Any, model: Any) -> dict[str, Any]:
    """A deep copy of all that a sweep must leave as it was."""
    optimizers = [o.state_dict() for o in fit.optimizers]
    metrics = {
        f"{name}.{key}": getattr(module, key)
        for name, module in model.named_modules()
        if isinstance(module, torchmetrics.Metric)
        for key in [*module._defaults, "_update_count"]
    }
    generators = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()[1].copy()}
    state = {"model": model.state_dict(), "optimizers": optimizers, "metrics": metrics, "random": generators}
    return copy.deepcopy(state)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class Witness(pl.Callback):
    """Looks at the run at the begin and at the end of every batch and in validation, and at which were a sweep's."""

    def __init__(self, finder: llr.LRFinder) -> None:
        self.finder = finder
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self.swept: list[bool] = []
        self.validated: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.begun.append(everything(trainer, pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended.append(everything(trainer, pl_module))
        self.swept.append(self.finder.sweeping)

    @property
    def batches(self) -> range:
        """Those of the first sweep, its pauses among them; in the last it has ended."""
        begin = self.swept.index(True)
        return range(begin, self.swept.index(False, begin) + 1)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(copy.deepcopy(pl_module.state_dict()))


def fit(finder: llr.LRFinder, model: Any, root: Path, loader: Any = None, others: Any = (), **kwargs: Any) -> Any:
    kwargs = {"max_epochs": 8, **kwargs}
    run = trainer(root, callbacks=[*others, finder], **kwargs)
    run.fit(model, Loader(8, 16) if loader is None else loader, held_out())
    return run


def taken(run: Any, finder: llr.LRFinder) -> int:
    """How many of the run's updates its sweeps took, pauses among them."""
    return run.global_step - finder.ledger.updates(0)


# no trace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("configure", [momentum, adamw, lambda m: cosine(m, 64)], ids=["sgd", "adamw", "cosine"])
def test_right_after_a_sweep_everything_is_bit_identical_to_right_before_it(
    configure: Any, at: int, tmp_path: Path
) -> None:
    finder = llr.LRFinder(at=at, apply=False, **SHORT)
    witness = Witness(finder)
    model = Stateful(configure)
    run = fit(finder, model, tmp_path / "run", Loader(42, 6), others=[witness], val_check_interval=5, max_epochs=1)
    (finding,) = finder.findings
    assert finding.suggestion is not None or finding.refusal
    assert witness.batches[0] == at
    begun, after = witness.begun[at], witness.ended[witness.batches[-1]]
    if isinstance(model.configure_optimizers(), dict):  # the schedule goes on
        for state in (begun, after):
            state["optimizers"][0]["param_groups"] = None
    # torchmetrics have heard of the run's own batches that ran at the healthy weights, and of no other
    # a pause, the look at the start's weights, and the first batch of the first trial
    counted = finding.look + 2
    assert after["metrics"]["accuracy._update_count"] == begun["metrics"]["accuracy._update_count"] + counted
    assert int(after["metrics"]["accuracy.tp"].sum()) <= int(begun["metrics"]["accuracy.tp"].sum()) + 8 * counted
    assert same({**begun, "metrics": {}}, {**after, "metrics": {}})
    # in the midst of it weights and optimizer are healthy too; only the generators run on
    for ended in witness.ended[at : witness.batches[-1]]:
        assert same(ended["model"], begun["model"])
        assert same(ended["optimizers"][0]["state"], begun["optimizers"][0]["state"])
    assert len([v for v in witness.validated if same(v, begun["model"])]) >= 2
    assert [float(g["lr"]) for g in run.optimizers[0].param_groups] == model.at_rest[-1]
    assert not (tmp_path / "run").exists()


def test_an_average_of_the_weights_and_a_checkpoint_see_no_trial(tmp_path: Path) -> None:
    averaging = pytest.importorskip("pytorch_lightning.callbacks.weight_averaging", reason="new in Lightning 2.6")
    finder = llr.LRFinder(apply=False, **SHORT)
    average = averaging.EMAWeightAveraging(decay=0.5)
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1, save_weights_only=True)
    model = Model(momentum, 8)
    before = model.weights()
    fit(finder, model, tmp_path, others=[average, saving], max_epochs=5, enable_checkpointing=True)
    for step in range(1, 16):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)["state_dict"]
        assert all(
            torch.equal(saved[name], weight) for (name, _), weight in zip(model.named_parameters(), before, strict=True)
        )


def test_what_the_sweep_trains_does_not_count_in_the_runs_metrics(tmp_path: Path) -> None:
    class Logs(Stateful):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            weights = [p.detach().clone() for p in self.parameters()]
            if not finder.sweeping:
                healthy[:] = weights
            # a batch that is played again is none of the run's own
            key = batch[0].numpy().tobytes()
            if same(weights, healthy) and key not in seen:
                counted.append(loss.item())
            seen.add(key)
            return loss

        def on_train_epoch_end(self) -> None:
            updates.append(self.accuracy._update_count)

    counted: list[float] = []
    seen: set[bytes] = set()
    healthy: list[Tensor] = []
    updates: list[int] = []
    finder = llr.LRFinder(at=3, **SHORT)
    model = Logs(momentum)
    # before the first update the weights of the batch before are not those of the sweep
    watcher = pl.callbacks.LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: healthy.__setitem__(slice(None), module.weights())
    )
    run = fit(finder, model, tmp_path, Loader(42, 6), others=[watcher], max_epochs=1)
    # all that the sweep did not take, the look at the start's weights, and the first batch of the first trial
    assert len(counted) == 42 - len(finder.result.losses) + finder.result.look + 1
    assert updates == [len(counted)]
    assert float(run.callback_metrics["train_loss_epoch"]) == pytest.approx(sum(counted) / len(counted), rel=1e-5)


class Unsized(torch.utils.data.IterableDataset):
    """Of a run with it nobody knows the length before it ends."""

    def __iter__(self) -> Any:
        return iter(Loader(8))


class Breaks(Model):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == 9:
            raise RuntimeError("the user's own")
        return super().training_step(batch, batch_idx)


def test_an_exception_in_mid_sweep_leaves_healthy_weights_rates_and_no_hook(tmp_path: Path) -> None:
    model = Breaks(momentum, 8)
    before = model.weights()
    finder = llr.LRFinder(**SHORT)
    run = trainer(tmp_path, callbacks=[finder], max_epochs=5)
    with pytest.raises(RuntimeError, match="the user's own"):
        run.fit(model, Loader(8))
    assert all(map(torch.equal, before, model.weights()))
    assert run.optimizers[0].param_groups[0]["lr"] == 0.1
    assert len(run.optimizers[0].state) == 0
    assert not finder.settling


def test_a_run_that_ends_in_mid_sweep_says_so_and_keeps_its_weights(tmp_path: Path) -> None:
    model = Model(momentum, 8)
    before = model.weights()
    loader = torch.utils.data.DataLoader(Unsized(), batch_size=None)
    with pytest.warns(UserWarning, match="ended after 7 updates of a sweep that may take 60"):
        fit(llr.LRFinder(), model, tmp_path, loader, max_epochs=1)
    assert all(map(torch.equal, before, model.weights()))


# the rate found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("configure", "rates"), [(momentum, (1e-6, 0.1, 100.0)), (adamw, (1e-8, 1e-3, 1.0))])
def test_the_run_ends_the_same_whatever_rate_it_began_with(configure: Any, rates: Any, tmp_path: Path) -> None:
    losses = []
    for rate in rates:
        run = fit(
            llr.LRFinder(), Model(lambda m, rate=rate: configure(m, rate), 16), tmp_path, Loader(16), max_epochs=16
        )
        losses.append(float(run.callback_metrics["val_loss"]))
    assert max(losses) == pytest.approx(min(losses), rel=1e-3)
    assert max(losses) < 1.0


def lambda_lr(module: Any) -> Any:
    optimizer = momentum(module)
    return step_by_step(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: 0.99**k))


def one_cycle(module: Any) -> Any:
    optimizer = momentum(module)
    return step_by_step(optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=200))


def cyclic(module: Any) -> Any:
    optimizer = momentum(module)
    return step_by_step(optimizer, torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.5, 20))


def step_by_step(optimizer: Any, scheduler: Any) -> Any:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize(
    ("configure", "peak"),
    [(momentum, 0.1), (lambda_lr, 0.1), (lambda m: cosine(m, 200), 0.1), (one_cycle, 0.5), (cyclic, 0.5)],
    ids=["none", "lambda", "cosine", "one cycle", "cyclic"],
)
def test_found_in_epoch_five_the_new_peak_still_governs_the_scheduler_later(
    configure: Any, peak: float, tmp_path: Path
) -> None:
    finder = llr.LRFinder(at=None, epochs=5, **SHORT)
    model = Model(configure, 8)
    run = fit(finder, model, tmp_path, max_epochs=11)
    (finding,) = finder.findings
    assert finding.update == 40
    assert finding.suggestion is not None
    bases = [row[0] for row in model.at_rest]
    bases = [initial(configure), *bases[:-1]]
    after = slice(40 + taken(run, finder), 88)
    used = [row[0] for row in model.trace][after]
    assert used == pytest.approx([base * finding.suggestion / peak for base in bases[after]])
    assert len(used) >= 8
    assert [row[0] for row in model.trace][:40] == pytest.approx(bases[:40])


def initial(configure: Any) -> float:
    made = configure(Model(momentum))
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    return optimizer.param_groups[0]["lr"]


def two_groups(module: Any) -> torch.optim.Optimizer:
    groups = [{"params": module.backbone.parameters(), "lr": 0.01}, {"params": module.head.parameters(), "lr": 0.1}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def test_param_groups_keep_their_ratio_in_the_sweep_and_after_it(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(steps=60), Model(two_groups, 8)
    run = fit(finder, model, tmp_path, max_epochs=10)
    assert all(row[0] == pytest.approx(row[1] / 10) for row in model.trace)
    count = taken(run, finder)
    # in a pause the rate is the user's, and the update is thrown away
    tried = [row[1] for row in model.trace[:count] if row[1] != 0.1]
    assert tried == pytest.approx(finder.result.rates)
    assert model.trace[count][1] == pytest.approx(finder.result.suggestion)


def test_with_apply_false_the_rate_stays(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(apply=False, **SHORT), Model(momentum, 8)
    run = fit(finder, model, tmp_path)
    assert {row[0] for row in model.trace[taken(run, finder) :]} == {0.1}


def test_a_refusal_goes_on_with_the_users_rate_and_says_which_bound_to_move(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(min_lr=1e-8, max_lr=1e-6, steps=60), Model(momentum, 8)
    run = fit(finder, model, tmp_path, max_epochs=10)
    assert finder.result.suggestion is None
    assert "raise max_lr" in finder.result.refusal
    assert {row[0] for row in model.trace[taken(run, finder) :]} == {0.1}


@pytest.mark.parametrize("rule", ["steepest", "minimum", "valley", "slide"])
def test_the_known_rules_run_too(rule: str, tmp_path: Path) -> None:
    finder = llr.LRFinder(suggest=rule, min_lr=1e-5, steps=60)
    fit(finder, Model(adamw, 16), tmp_path, Loader(16))
    assert finder.result.words
    assert not finder.result.trials
    assert list(finder.result.rates) == sorted(finder.result.rates)


# when ------------------------------------------------------------------------------------------------------------


def test_it_sweeps_at_every_update_and_epoch_given_and_on_request(tmp_path: Path) -> None:
    class Asks(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 18:
                finder.request("unfroze the backbone")

    finder = llr.LRFinder(at=[0, 20], epochs=12, **SHORT)
    fit(finder, Model(momentum, 8), tmp_path, others=[Asks()], max_epochs=24)
    assert [finding.update for finding in finder.findings[:2]] == [0, 20]
    assert len(finder.findings) == 4


def test_warm_up_counts_no_update_of_a_sweep_and_plateau_decay_rests(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(apply=False, **SHORT), Model(momentum, 8)
    plateau = llr.PlateauDecay("val_loss", patience=0, factor=0.5)
    run = fit(finder, model, tmp_path, others=[llr.Warmup(4), plateau], max_epochs=6)
    count = taken(run, finder)
    assert [row[0] for row in model.trace[count : count + 5]] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


@pytest.mark.parametrize("at", [0, 2])
def test_with_accumulation_a_point_is_one_update_and_its_mean_loss(at: int, tmp_path: Path) -> None:
    finder = llr.LRFinder(at=at, apply=False, **SHORT)
    witness = Witness(finder)
    model = Model(momentum, 8)
    fit(finder, model, tmp_path, Loader(32, 2), others=[witness], max_epochs=7, accumulate_grad_batches=4)
    assert witness.batches[0] == 4 * at
    begun = witness.begun[4 * at]
    assert same(begun["model"], witness.begun[witness.batches[-1] + 1]["model"])
    for number in witness.batches:
        assert same(witness.ended[number]["model"], begun["model"])
    # the sweep, and an epoch that begins within a trial, begin with a pause of one update
    assert 0 <= len(witness.batches) - 4 * len(finder.result.losses) <= 4 * 5
    assert len(witness.batches) % 4 == 0
    images, labels = digits()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    chosen = order[8 * at : 8 * at + 8]
    if at == 0:
        torch.manual_seed(0)
        fresh = Model(momentum, 8)
        chosen = order[8:16]  # the first update is a pause
        loss = nn.functional.cross_entropy(fresh(images[chosen]), labels[chosen])
        assert finder.result.losses[0] == pytest.approx(loss.item(), rel=1e-5)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self) -> Any:
        images, labels = digits()
        while True:
            chosen = torch.randint(len(images), (8,))
            yield images[chosen], labels[chosen]


def test_an_iterable_data_set_without_length_works(tmp_path: Path) -> None:
    finder = llr.LRFinder(steps=60)
    loader = torch.utils.data.DataLoader(Endless(), batch_size=None)
    fit(finder, Model(momentum, 8), tmp_path, loader, max_epochs=-1, max_steps=80, limit_val_batches=0)
    assert finder.result.suggestion is not None


class Manual(Model):
    """Several updates in one training step."""

    def __init__(self, configure: Any, times: int = 2) -> None:
        super().__init__(configure, 8)
        self.automatic_optimization = False
        self.times = times

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizers = self.optimizers()
        for optimizer in optimizers if isinstance(optimizers, list) else [optimizers]:
            for _ in range(self.times):
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()


@pytest.mark.parametrize("times", [1, 2])
def test_manual_optimization_with_one_optimizer_works(times: int, tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    witness = Witness(finder)
    model = Manual(momentum, times)
    fit(finder, model, tmp_path, others=[witness])
    finding = finder.result
    assert finding.suggestion is not None
    rates = [row[0] for row in model.trace if row[0] != 0.1]
    # a batch is one point, however many updates are made of it
    assert rates[: times * len(finding.losses)] == pytest.approx(np.repeat(finding.rates, times))
    # no batch of a trial counts, so every epoch has a pause: its first batch
    paused = [number for number in range(len(witness.batches)) if model.trace[number * times][0] == 0.1]
    assert paused == [number for number in witness.batches if number % 8 == 0]
    begun = witness.begun[0]["model"]
    assert all(same(ended["model"], begun) for ended in witness.ended[: witness.batches[-1]])
    assert not same(witness.ended[witness.batches[-1] + 1]["model"], begun)


def two_optimizers(module: Any) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SGD(module.backbone.parameters(), lr=0.05),
        torch.optim.SGD(module.head.parameters(), lr=0.1, momentum=0.9),
    ]


def test_of_two_optimizers_one_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"gave 2 \(0: SGD, 1: SGD\): name the one to sweep with LRFinder\(optimizer=0\)"
    ):
        fit(llr.LRFinder(), Manual(two_optimizers), tmp_path)
    with pytest.raises(ValueError, match="names no optimizer of this run, which has 2"):
        fit(llr.LRFinder(optimizer=2), Manual(two_optimizers), tmp_path)


def test_of_two_optimizers_the_named_one_is_swept_and_the_other_keeps_its_rate(tmp_path: Path) -> None:
    finder = llr.LRFinder(optimizer=1, steps=60)
    model = Manual(two_optimizers, 1)
    witness = Witness(finder)
    fit(finder, model, tmp_path, others=[witness], max_epochs=11)
    assert finder.result.suggestion is not None
    assert {row[0] for row in model.trace[::2]} == {0.05}
    assert [row[0] for row in model.trace[1::2]][-1] == pytest.approx(finder.result.suggestion)
    count = len(witness.batches)
    assert same(witness.begun[0]["model"], witness.begun[count]["model"])
    assert [finder.ledger.updates(i) for i in (0, 1)] == [88 - count, 88 - count]


def test_bf16_mixed_works(tmp_path: Path) -> None:
    finder = llr.LRFinder(steps=60)
    fit(finder, Model(momentum, 16), tmp_path, Loader(16), precision="bf16-mixed")
    assert finder.result.suggestion is not None


def test_under_a_gradient_scaler_losses_are_unscaled_and_skipped_updates_are_no_points(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=4)
    finder = llr.LRFinder(apply=False, **SHORT)
    model = Model(momentum, 16)
    run = trainer(tmp_path, callbacks=[finder], max_epochs=8, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    before: list[Any] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            before.append((scaler.state_dict(), finder.settling))

    run.callbacks.append(Look())
    run.fit(model, Loader(8), held_out())
    assert finder.result.losses[0] == pytest.approx(2.3, abs=0.2)
    assert all(state == before[0][0] for state, sweeping in before if sweeping)


# resuming --------------------------------------------------------------------------------------------------------


def checkpoints(root: Path, every: int = 1) -> ModelCheckpoint:
    return ModelCheckpoint(root, filename="{step}", save_top_k=-1, every_n_train_steps=every)


def test_a_resumed_run_repeats_no_finished_sweep_and_keeps_the_rate(tmp_path: Path) -> None:
    finder, model = llr.LRFinder(**SHORT), Model(momentum, 8)
    run = fit(finder, model, tmp_path, others=[checkpoints(tmp_path)], max_epochs=5, enable_checkpointing=True)
    count = taken(run, finder)
    assert count < 36
    for step in (count, count + 3, 38):
        again, resumed = llr.LRFinder(**SHORT), Model(momentum, 8)
        run = trainer(tmp_path, callbacks=[again, checkpoints(tmp_path / "b")], max_epochs=5, enable_checkpointing=True)
        run.fit(resumed, Loader(8, 16), held_out(), ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert again.findings == finder.findings
        assert run.global_step == 40
        assert resumed.trace == model.trace[step:]
        assert all(map(torch.equal, resumed.weights(), model.weights()))


@pytest.mark.parametrize("configure", [momentum, adamw], ids=["sgd", "adamw"])
@pytest.mark.parametrize("step", [8, 9, 15, 21, 27])
def test_killed_in_mid_sweep_and_resumed_it_goes_on_with_the_sweep(configure: Any, step: int, tmp_path: Path) -> None:
    finder, model = llr.LRFinder(at=4, **SHORT), Model(configure, 8)
    witness = Witness(finder)
    fit(finder, model, tmp_path, others=[witness, checkpoints(tmp_path)], max_epochs=6, enable_checkpointing=True)
    again, resumed = llr.LRFinder(at=4, **SHORT), Model(configure, 8)
    looks = Witness(again)
    run = trainer(
        tmp_path, callbacks=[looks, again, checkpoints(tmp_path / "b")], max_epochs=6, enable_checkpointing=True
    )
    run.fit(resumed, Loader(8, 16), held_out(), ckpt_path=str(tmp_path / f"step={step}.ckpt"))
    assert again.findings == finder.findings
    for mine, theirs in zip(looks.ended, witness.ended[step:], strict=True):
        assert same(mine["model"], theirs["model"])
        assert same(mine["optimizers"][0]["state"], theirs["optimizers"][0]["state"])
    # the trials' updates included
    assert resumed.trace == model.trace[step:]
    assert same(resumed.weights(), model.weights())


def test_a_checkpoint_of_a_run_with_a_finder_loads_with_weights_only(tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    run = fit(finder, Model(momentum, 8), tmp_path)
    run.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["LRFinder[LRFinder]"]["own"]
    assert llr.Finding.from_dict(saved["findings"][0]) == finder.result


def test_a_second_fit_sweeps_again_and_a_finder_that_has_run_can_be_copied(tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    fit(finder, Model(momentum, 8), tmp_path)
    first = finder.findings
    fit(finder, Model(momentum, 8), tmp_path)
    assert finder.findings == first
    copied = copy.deepcopy(finder)
    fit(copied, Model(momentum, 8), tmp_path)
    assert copied.findings == first


# shown -----------------------------------------------------------------------------------------------------------


def test_the_curve_is_shown_as_figure_scalars_text_and_one_line(tmp_path: Path, capsys: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finder = llr.LRFinder(**SHORT)
    run = fit(finder, Model(momentum, 8), tmp_path, logger=True, log_every_n_steps=1)
    events = EventAccumulator(run.logger.log_dir, size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    assert "lr-finder" in events.Tags()["images"]
    rates = [event.value for event in events.Scalars("lr-finder/rate")]
    assert set(np.float32(finder.result.rates)) <= set(np.float32(rates))
    assert "lr-finder/loss" in events.Tags()["scalars"]
    texts = b" ".join(e.tensor_proto.string_val[0] for e in events.Tensors("lr-events/text_summary")).decode()
    assert "LRFinder (at the start): rate" in texts
    # of the run's own batches those that ran at the healthy weights are points of the training curve
    healthy = finder.result.look + 1
    assert len(events.Scalars("train_loss")) == 64 - len(finder.result.losses) + healthy


def test_the_picture_marks_the_suggestion_and_names_the_rule(tmp_path: Path) -> None:
    finder = llr.LRFinder(**SHORT)
    with pytest.raises(RuntimeError, match="no sweep has ended"):
        finder.plot()
    fit(finder, Model(momentum, 8), tmp_path)
    (axes,) = finder.plot().axes
    texts = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    rate = finder.result.suggestion
    share, sure = finder.result.share, "sure" if finder.result.sure else "unsure"
    assert f"suggestion {rate:.3g} (bracket), {sure}: {share:.2g} x {rate / share:.3g}" in texts
    assert "before, on the same batches" in texts


@pytest.mark.parametrize("replay", [True, False])
def test_the_pictures_ramp_has_the_noise_between_batches_only_where_they_were_others(
    replay: bool, tmp_path: Path
) -> None:
    finder = llr.LRFinder(steps=60, replay=replay)
    fit(finder, Model(momentum, 8), tmp_path, max_epochs=12)
    found = finder.result
    drawn = next(line for line in finder.plot().axes[0].lines if line.get_label() == "ramp").get_ydata()
    start, ramp = np.array(found.losses[: found.look]), np.array(found.losses[found.look : found.look + found.ramp])
    same_batch = start[np.arange(len(ramp)) % len(start)]
    assert drawn == pytest.approx(start.mean() + ramp - same_batch if replay else ramp)
    # at the lowest rates nothing changes
    assert (np.ptp(drawn[:4]) < 1e-3) == replay


def test_a_finding_of_the_release_before_is_drawn_as_its_losses_were() -> None:
    finding = llr.Finding((0.0, 0.1, 1.0), (2.0, 1.0, 0.5), (), 2, None, "", "", "bracket", 0, 3, look=1, paired=True)
    saved = finding.to_dict()
    assert llr.Finding.from_dict(saved) == finding
    del saved["paired"]
    old = llr.Finding.from_dict({**saved, "version": 2})
    assert old.paired is None
    assert list(old.plot().axes[0].lines[0].get_ydata()) == [1.0, 0.5]


@pytest.mark.parametrize("rule", ["bracket", "steepest"])
def test_the_picture_marks_what_blew_up_at_the_top_edge(rule: str) -> None:
    trials = ((0.03, 1.0), (0.1, 0.5), (0.3, None)) if rule == "bracket" else ()
    losses = (2.0, 2.0, 1.0, math.inf)
    words = "0.3 of 0.1 (lowest loss; 0.1: 0.5, 0.3: blew up)"
    finding = llr.Finding((0.01, 0.1, 1.0, 3.0), losses, trials, 4, 0.03, "", words, rule, 0, 3)
    (axes,) = finding.plot().axes
    (crosses,) = [line for line in axes.lines if line.get_label() == "blew up"]
    assert list(crosses.get_xdata()) == ([0.3, 3.0] if rule == "bracket" else [3.0])
    assert all(0.9 < y <= 1.0 for y in crosses.get_ydata())
    # the lowest loss is on it, on a ramp's second half too
    assert axes.get_ylim()[0] < 1.0


@pytest.mark.filterwarnings("error")
def test_a_refusal_is_the_pictures_title(tmp_path: Path) -> None:
    finding = llr.Finding(
        (0.01, 0.1), (2.0, 2.0), (), 2, None, "the curve is flat", "the curve is flat", "valley", 0, 3
    )
    figure = finding.plot()
    figure.savefig(tmp_path / "figure.png")
    assert figure.axes[0].get_title() == "no suggestion: the curve is flat"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"at": -1}, "at must be whole numbers .* got -1"),
        ({"epochs": [1, 2.5]}, r"epochs must be whole numbers >= 0, got \[1, 2.5\]"),
        ({"at": []}, r"at must have at least one number, got \[\]: for none write at=None"),
        ({"epochs": ()}, r"epochs must have at least one number, got \(\): for none write epochs=None"),
        ({"optimizer": -1}, "optimizer must be a whole number >= 0, got -1: it is an index, or None"),
        ({"steps": 5}, "steps must be a whole number >= 20, got 5"),
        ({"steps": None}, "steps must be a whole number >= 20, got None: fewer show nothing, 'auto' goes by the run's"),
        ({"min_lr": True}, "min_lr and max_lr must be finite with 0 < min_lr < max_lr, got True and 10.0"),
        ({"max_lr": True}, "got 1e-08 and True"),
        ({"progress_bar": 3}, "progress_bar must be True or False, got 3"),
        ({"suggest": "best"}, "suggest must be one of 'bracket', 'steepest'"),
        ({"suggest": []}, "suggest must be one of 'bracket', 'steepest'"),
    ],
)
def test_a_wrong_argument_is_answered_with_bound_and_value(arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        llr.LRFinder(**arguments)


def test_whole_numbers_and_rates_may_be_numpys() -> None:
    finder = llr.LRFinder(at=np.int64(3), steps=np.int64(30), min_lr=np.float32(1e-5), optimizer=np.int64(0))
    assert (finder.schedule.updates, finder.policy.steps, finder.optimizer) == ((3,), 30, 0)
    assert finder.policy.min_lr == pytest.approx(1e-5)


def test_a_finder_that_nobody_has_told_when_says_so(tmp_path: Path) -> None:
    finder = llr.LRFinder(at=None)
    fit(finder, Model(momentum, 8), tmp_path, max_epochs=1)
    assert finder.run.journal.story[0] == (
        "step 0: LRFinder: at= and epochs= are both None, so it sweeps only on request, by "
        "finder.request(...) or a DivergenceGuard. To find the rate at the start, write LRFinder(at=0)"
    )


def test_an_optimizer_whose_rates_are_all_zero_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the highest is 0.0: give the optimizer any lr > 0"):
        fit(llr.LRFinder(), Model(lambda m: sgd(m, 0.0)), tmp_path)


# several ranks ---------------------------------------------------------------------------------------------------


def fit_on_a_rank(root: str) -> tuple[Any, Any, Any]:
    finder, model = llr.LRFinder(steps=60), Stateful(momentum)
    run = trainer(root, callbacks=[finder], max_epochs=10, devices=2, strategy="ddp")
    run.fit(model, Loader(8, offset=64 * run.global_rank))
    return finder.findings, [w.tolist() for w in model.weights()], model.trace


def test_two_ranks_with_different_data_find_one_rate(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_on_a_rank, str(tmp_path))
    assert first[0][0].suggestion is not None
    assert first == second


def fit_sharded(root: str) -> tuple[Any, bool, Any]:
    from pytorch_lightning.strategies import ModelParallelStrategy

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if not begun:
                begun.extend(p.to_local().clone() for p in pl_module.parameters())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if finder.settling or len(ended) == 0:
                ended.append(all(map(torch.equal, begun, (p.to_local() for p in pl_module.parameters()))))

    begun: list[Tensor] = []
    ended: list[bool] = []
    finder, model = llr.LRFinder(steps=60), Sharded(adamw)
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    run = trainer(root, max_epochs=10, callbacks=[finder, Look()], devices=2, strategy=strategy)
    run.fit(model, Loader(8, 16, offset=16 * run.global_rank))
    return finder.findings, all(ended) and len(ended) > 20, [p.full_tensor().tolist() for p in model.net.parameters()]


def test_sharded_weights_are_healthy_between_batches_and_the_ranks_find_one_rate(pool: Pool, tmp_path: Path) -> None:
    first, second = pool.run(fit_sharded, str(tmp_path))
    assert first[0][0].suggestion is not None
    assert first[1]
    assert first == second
