"""What all callbacks have in common: a name, a part in one run, and state that can be saved."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch.nn.parameter import is_lazy

from lightning_lr.rates.ledger import Ledger
from lightning_lr.record.journal import Journal
from lightning_lr.run.peer import Peer
from lightning_lr.run.run import Run
from lightning_lr.saved import SavedStateError, fields, plain

STATE = 3
"""The version of what `state_dict` gives."""

NAMESPACES = ("lightning.pytorch", "pytorch_lightning")
"""In this order: where neither is imported yet, the last has the console messages of both."""


def _callback_bases() -> tuple[type, ...]:
    """Lightning lives under two names; a callback has to be an instance of the `Callback` of each one installed."""
    # the import of either takes all console messages over for its own logger: they stay with the one the user has
    known = any(sys.modules.get(module) for module in NAMESPACES)
    shared = {name: getattr(rank_zero, name) for name in ("log", "rank_zero_deprecation_category")}
    bases, broken = [], None
    for module in NAMESPACES:
        try:
            bases.append(importlib.import_module(module).Callback)
        except Exception as error:
            # one that is left over from an older torch, say, hurts nobody as long as the other works
            if not isinstance(error, ModuleNotFoundError) or error.name not in (*NAMESPACES, "lightning"):
                broken = error
    for name, kept in shared.items() if known else ():
        setattr(rank_zero, name, kept)
    if not bases:
        raise broken or ModuleNotFoundError(
            "lightning_lr needs pytorch-lightning or lightning: pip install pytorch-lightning"
        )
    return tuple(bases)


class LRCallback(Peer, *_callback_bases()):  # pyright: ignore[reportUntypedBaseClass, reportGeneralTypeIssues]
    """A callback that shares one ledger and one journal with the others of its trainer.

    A subclass sets factors under its own `name`, and overrides those of `started`, `before_update`, `gradients_ready`,
    `after_update`, `settling`, `own_state` and `load_own_state` that it needs. If it overrides a Lightning hook that
    this class has, it calls `super()`.

    Args:
        name: the name under which its factor is kept and shown; by default the class's own. Two callbacks of one kind
            need different names.
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__()
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ValueError(f"name must be a word without '/', got {name!r}: it becomes the tag lr-factor/<name>")
        self.name = name or type(self).__name__
        self.option: str | None = None
        """The argument of `autopilot` that it was made by; None if it was made by itself."""
        self.arguments: dict[str, Any] = {}
        """The arguments that it was made with, by name."""
        # Lightning asks for it at every hook of every batch
        self._state_key = f"{type(self).__name__}[{self.name}]"
        self.changed: dict[str, tuple[Any, Any]] = {}
        """The arguments that differ from those in the checkpoint of a resumed run: (saved, present) by name."""
        self._run: Run | None = None
        self._loaded = self._fitting = False
        self._passing: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """The key of its state in a checkpoint: class and name, so that two of one kind can coexist."""
        return self._state_key

    @property
    def run(self) -> Run:
        """The run that this callback takes part in.

        Raises:
            RuntimeError: before the first `trainer.fit`.
        """
        if self._run is None:
            raise RuntimeError(f"{self.name} takes part in no run: it has a ledger only within trainer.fit")
        return self._run

    @property
    def ledger(self) -> Ledger:
        """The ledger of the run; its optimizers are known from `started` on."""
        return self.run.ledger

    @property
    def journal(self) -> Journal:
        """The journal of the run."""
        return self.run.journal

    def __repr__(self) -> str:
        # a subclass with arguments of its own hands those of its parent on
        kinds = [kind for kind in reversed(type(self).__mro__) if issubclass(kind, LRCallback)]
        defaults = {k: p.default for kind in kinds for k, p in inspect.signature(kind.__init__).parameters.items()}
        given = {k: v for k, v in self.arguments.items() if k not in defaults or v != defaults[k]}
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    # for subclasses --------------------------------------------------------------------------------------------

    def keep_arguments(self, scope: dict[str, Any]) -> None:
        """Remembers the arguments; a subclass's `__init__` calls `keep_arguments(locals())` right after `super()`'s."""
        self.arguments = {k: v for k, v in scope.items() if k not in ("self", "__class__", "scope")}

    def go_first(self, trainer: Any) -> None:
        """Moves it to the front of the trainer's callbacks, so that no other one sees weights that are only tried out,
        be it at the end of a batch or after an exception."""
        trainer.callbacks.remove(self)
        trainer.callbacks.insert(0, self)

    def reset(self) -> None:
        """Forgets an earlier `fit`; a checkpoint's state is loaded after this."""

    def started(self, trainer: Any, pl_module: Any) -> None:
        """Training starts: the ledger is on the optimizers, and all saved state has been restored."""

    def own_state(self) -> dict[str, Any]:
        """What only this callback knows, as plain numbers, strings and lists."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Takes up what `own_state` returned."""

    # Lightning's hooks -----------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        peers = [callback for callback in trainer.callbacks if isinstance(callback, LRCallback)]
        self._run = Run(trainer, peers) if peers[0] is self else peers[0].run
        self._loaded, self._passing, self.changed = False, {}, {}
        self.reset()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not self._leads:
            return
        self.run.attach()
        for peer in self._peers:
            if peer.has_factor and not peer._loaded and trainer.ckpt_path and trainer.global_step > 0:
                rank_zero_warn(
                    f"the checkpoint holds no state of {peer.name}: it starts afresh at step {trainer.global_step}"
                )
            peer._tell_changes()
            if peer.copies and (lazy := [name for name, p in pl_module.named_parameters() if is_lazy(p)]):
                raise ValueError(
                    f"{peer.name} copies weights, and those of lazy modules are not there yet ({', '.join(lazy[:3])}): "
                    f"run a batch through the model in setup(), or {peer.left_out}"
                )
            peer.started(trainer, pl_module)
        self.run.begin()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._leads:
            self.run.attach()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._leads:
            self.run.attach()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._leads:
            self.run.look_for_updates()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._leads:
            self.run.flush()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._leads:
            self.run.close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._leads:
            self.run.last_line()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # later callbacks may still save a checkpoint: the run stays, with the rates that the scheduler gave
        if self._run is None or not self._leads:
            return
        self.run.failed = True
        self.run.ledger.detach()
        try:
            self.run.close(exception)
        except Exception as error:
            # it may be the logger itself that failed; the callbacks after this one have to be told too
            rank_zero_warn(f"the last rates could not be written: {error!r}")
        self.run.last_line()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and self._run is not None and self._leads:
            self.run.ledger.detach()

    def state_dict(self) -> dict[str, Any]:
        if self._run is None:
            # a trainer that only evaluates saves what the checkpoint that it evaluates has
            return self._passing
        from lightning_lr import __version__

        return {
            "version": STATE,
            "release": __version__,
            "arguments": plain(self.arguments),
            "ledger": self.run.save(),
            "own": self.own_state(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._fitting:
            # validate, test and predict need the weights alone
            self._passing = state_dict
            return
        self._loaded = True
        try:
            saved = fields(state_dict, STATE, self.name)
            before, now = saved["arguments"], plain(self.arguments)
            both = before.keys() & now.keys()
            self.changed = {key: (before[key], now[key]) for key in now if key in both and before[key] != now[key]}
            self.run.load(saved["ledger"])
            self.load_own_state(saved["own"])
        except (SavedStateError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise SavedStateError(self._unreadable(state_dict, error)) from error

    def _unreadable(self, state: dict[str, Any], error: Exception) -> str:
        from lightning_lr import __version__

        release = state.get("release")
        wrote = f"lightning_lr {release}" if isinstance(release, str) else "an earlier release of lightning_lr"
        what = error if isinstance(error, SavedStateError) else f"its entries are not those of this release ({error!r})"
        return (
            f"the checkpoint's state of {self.name} was written by {wrote} and can't be taken up by {__version__}: "
            f"{what}. Resume with the release that wrote it, or start {self.name} afresh under another name: "
            f"{self.written(name=self.name + '2')}"
        )

    def _tell_changes(self) -> None:
        """One line for all arguments that differ from those in the checkpoint."""
        if self.changed:
            words = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in self.changed.items())
            line = f"{self.name} resumes with other arguments than it was saved with, and the new ones hold: {words}"
            rank_zero_info(line)
            self.journal.say(line, self.name)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    @property
    def _peers(self) -> list[LRCallback]:
        return [peer for peer in self.run.peers if isinstance(peer, LRCallback)]

    @property
    def _leads(self) -> bool:
        return self.run.peers[0] is self
