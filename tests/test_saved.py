"""Checkpoints: evaluated from, resumed with other arguments, optimizers and releases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_lr as llr
from tests.small import Loader, Model, held_out, sgd, trainer

MAKE: dict[str, Callable[[], list[Any]]] = {
    "Warmup": lambda: [llr.Warmup(20)],
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
    fit = fitted(tmp_path, MAKE[name]())
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
    "an agenda": ("LRFinder", lambda s: s["own"]["agenda"].update(version=99), "AgendaState is saved in version 99"),
    "a finding": ("LRFinder", lambda s: s["own"]["findings"][0].update(version=2), "Finding is saved in version 2"),
    "more flags": ("DivergenceGuard", lambda s: s["own"]["flags"].append(False), "its entries are not those"),
    "no reasons": ("DivergenceGuard", lambda s: s["own"].pop("reasons"), "its entries are not those"),
    "a judge": (
        "DivergenceGuard",
        lambda s: s["own"]["states"][0].update(version=2),
        "DivergenceState is saved in vers",
    ),
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
    resumed = trainer(tmp_path, callbacks=[callback], max_epochs=12)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint|holds no state of"):
        resumed.fit(Model(sgd), Loader(), held_out(), ckpt_path=path)
    assert resumed.current_epoch == 12


@pytest.mark.parametrize("evaluate", ["validate", "test"])
def test_a_state_of_another_release_stands_in_the_way_of_no_evaluation(evaluate: str, tmp_path: Path) -> None:
    path = edited(tmp_path, "Warmup", lambda state: state.update(version=99))
    judge = trainer(tmp_path, callbacks=MAKE["Warmup"]())
    assert getattr(judge, evaluate)(Judged(sgd), held_out(), ckpt_path=str(path), verbose=False)
