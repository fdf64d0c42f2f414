"""Lightning's `LightningCLI`: all callbacks from a YAML file and from the command line, in both namespaces."""

from __future__ import annotations

import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml

import lightning_lr as llr
from lightning_lr.callbacks.autopilot import KINDS
from lightning_lr.policies.curve_rules import RULES
from lightning_lr.policies.sweep import BRACKET
from tests.namespaces import NAMESPACES, Net, each, home, loaders

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
KIND = {
    kind.__name__: kind
    for kind in (
        llr.LRFinder,
        llr.Warmup,
        llr.Cooldown,
        llr.PlateauDecay,
        llr.DivergenceGuard,
        llr.LRMonitor,
    )
}

GIVEN: dict[str, dict[str, Any]] = {
    "LRFinder": {
        "at": [0, 500],
        "epochs": [3],
        "min_lr": 1e-7,
        "max_lr": 1.0,
        "steps": 40,
        "suggest": "valley",
        "replay": False,
        "apply": False,
        "optimizer": 0,
        "progress_bar": False,
        "name": "Finder",
    },
    "Warmup": {
        "steps": "auto",
        "epochs": None,
        "fraction": None,
        "shape": "cosine",
        "start_factor": 0.1,
        "name": "Ramp",
    },
    "Cooldown": {
        "steps": 200,
        "epochs": None,
        "fraction": None,
        "shape": "1-sqrt",
        "end_factor": 0.1,
        "on_stop": True,
        "name": "Fall",
    },
    "PlateauDecay": {
        "monitor": "val_acc",
        "mode": "max",
        "factor": 0.5,
        "patience": 3,
        "threshold": 1e-3,
        "threshold_mode": "abs",
        "cooldown": 1,
        "min_lr": 1e-6,
        "max_decays": 4,
        "test": "trend",
        "optimizer": 1,
        "name": "Decay",
    },
    "DivergenceGuard": {
        "limit": 6.0,
        "trials": False,
        "backoff": 0.3,
        "max_rewinds": 3,
        "loss_falls": False,
        "snapshot_every": 25,
        "memory_limit": 10**9,
        "save_snapshots": True,
        "incidents_dir": "incidents",
        "lag": 1,
        "on_give_up": "stop",
        "name": "Guard",
    },
    "LRMonitor": {
        "logging_interval": "step",
        "log_momentum": True,
        "log_weight_decay": True,
        "momentum": True,
        "weight_decay": True,
        "prog_bar": True,
        "update_ratio": True,
        "layout": False,
        "name": "Monitor",
    },
}
"""Every argument of every callback, none at its default but for the two lengths that `steps` rules out."""


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["cli.py"])
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("COLUMNS", "200")
    # Lightning's own use of jsonargparse
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.chdir(tmp_path)


def cli(namespace: str, *args: str, base: type | None = None, **defaults: Any) -> Any:
    """The command line, parsed; its trainer, made."""
    lightning = importlib.import_module(f"{namespace}.cli")
    model = type("Module", (Net, home(namespace).LightningModule), {})
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    return (base or lightning.LightningCLI)(
        model, args=list(args), run=False, save_config_callback=None, trainer_defaults={**quiet, **defaults}
    )


def ours(made: Any) -> dict[str, Any]:
    """The trainer's callbacks of this package, by class."""
    return {type(callback).__name__: callback for callback in made.trainer.callbacks if type(callback).__name__ in KIND}


def written(path: Path, **callbacks: dict[str, Any]) -> str:
    """The path of a YAML file with the callbacks."""
    entries = [{"class_path": f"lightning_lr.{name}", "init_args": args} for name, args in callbacks.items()]
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": entries}}))
    return str(path)


def plain(callback: Any) -> dict[str, Any]:
    """What a callback was made with, by whomever."""
    held = {key: repr(value) for key, value in vars(callback).items() if key != "option"}
    kept = {key: value for key, value in held.items() if not re.search(r" at 0x|tensor", value)}
    return {**kept, "class": type(callback)}


def complaint(capsys: pytest.CaptureFixture[str], namespace: str, *args: str) -> str:
    """What a user reads who gives these arguments: below the usage, or below a traceback."""
    with pytest.raises((SystemExit, ValueError)) as caught:
        cli(namespace, *args)
    return str(caught.value) if isinstance(caught.value, ValueError) else capsys.readouterr().err


def required(kind: type) -> list[str]:
    """The arguments that a callback can't be made without."""
    parameters = inspect.signature(kind).parameters.items()
    return [key for key, parameter in parameters if parameter.default is inspect.Parameter.empty]


def add(name: str, *values: str) -> list[str]:
    """A callback on the command line."""
    return [f"--trainer.callbacks+=lightning_lr.{name}", *(f"--trainer.callbacks.{value}" for value in values)]


@each
def test_every_argument_of_every_callback_can_be_set_in_a_file(namespace: str, tmp_path: Path) -> None:
    made = ours(cli(namespace, "--config", written(tmp_path / "all.yaml", **GIVEN)))
    assert made.keys() == KIND.keys()
    for name, given in GIVEN.items():
        assert given.keys() == inspect.signature(KIND[name]).parameters.keys()
        assert plain(made[name]) == plain(KIND[name](**given))


@each
def test_print_config_shows_every_argument_and_reads_its_own_output(
    namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: {key: GIVEN[name][key] for key in required(kind)} for name, kind in KIND.items()}
    with pytest.raises(SystemExit, match="0"):
        cli(namespace, "--config", written(tmp_path / "each.yaml", **given), "--print_config")
    shown = yaml.safe_load(capsys.readouterr().out)
    for entry, (name, kind) in zip(shown["trainer"]["callbacks"], KIND.items(), strict=True):
        assert entry["class_path"] == f"lightning_lr.{name}"
        defaults = {key: parameter.default for key, parameter in inspect.signature(kind).parameters.items()}
        assert entry["init_args"] == {**defaults, **given[name]}
    fractions = {"Warmup": 0.05, "Cooldown": 0.2}
    for place, fraction in enumerate(fractions.values(), 1):
        shown["trainer"]["callbacks"][place]["init_args"]["fraction"] = fraction
    (tmp_path / "shown.yaml").write_text(yaml.safe_dump(shown))
    made = ours(cli(namespace, "--config", str(tmp_path / "shown.yaml")))
    for name, fraction in fractions.items():
        given[name]["fraction"] = fraction
    written_out = [kind(**given[name]) for name, kind in KIND.items()]
    assert {name: plain(c) for name, c in made.items()} == {type(c).__name__: plain(c) for c in written_out}


@each
def test_callbacks_are_added_and_changed_on_the_command_line(namespace: str, tmp_path: Path) -> None:
    file = written(tmp_path / "one.yaml", PlateauDecay={"factor": 0.5})
    more = [*add("LRFinder", "at=[0,500]", "min_lr=1e-7"), *add("Warmup", "steps=100", "shape=cosine")]
    made = ours(cli(namespace, "--config", file, *more))
    assert list(made) == ["PlateauDecay", "LRFinder", "Warmup"]
    assert plain(made["LRFinder"]) == plain(llr.LRFinder(at=[0, 500], min_lr=1e-7))
    assert plain(made["Warmup"]) == plain(llr.Warmup(100, shape="cosine"))
    assert plain(made["PlateauDecay"]) == plain(llr.PlateauDecay(factor=0.5))


BAD = [
    (("PlateauDecay", "factor=1.5"), ["factor must be in (0, 1), got 1.5: to keep the rate, leave PlateauDecay out"]),
    (("Warmup", "steps=0"), ["steps must be a whole number >= 1, got 0: for no warm-up, leave Warmup out"]),
    (("Warmup", "steps=3", "fraction=0.1"), ["give exactly one of steps, epochs and fraction, got steps=3, fraction="]),
    (("Warmup",), ["give exactly one of steps, epochs and fraction, got none"]),
    (("DivergenceGuard", "snapshot_every=0"), ["snapshot_every must be a whole number >= 1 or 'auto', got 0"]),
    (("LRFinder", "max_lr=1e-9"), ["min_lr and max_lr must be finite with 0 < min_lr < max_lr, got 1e-08 and 1e-09"]),
    (("Cooldown", "fraction=0"), ["fraction must be in (0, 1], got 0", "it is a share of the whole run"]),
    (("Cooldown", "steps=3", "shape=sqrt"), ['"shape"', "'linear', '1-sqrt', 'cosine'", "sqrt"]),
    (("Warmup", "steps=3", "stepz=4"), ["lightning_lr.Warmup", "'stepz' is not accepted"]),
    (("Warmup", "steps=many"), ["lightning_lr.Warmup", '"steps"', "'int'", "'auto'", "many"]),
    (("Warmup", "steps=3", "shape=cubic"), ['"shape"', "'linear', 'cosine', 'exponential', 'constant'", "cubic"]),
    (("LRFinder", "suggest=best"), ['"suggest"', "'bracket', 'steepest', 'valley', 'slide', 'minimum'", "best"]),
    (("DivergenceGuard", "lag=2"), ['"lag"', "[0, 1]", "2"]),
    (("Warmpu", "steps=3"), ["'lightning_lr' has no attribute 'Warmpu'"]),
]


@each
@pytest.mark.parametrize(("given", "words"), BAD, ids=[" ".join(given) for given, _ in BAD])
def test_a_bad_value_is_named_with_what_would_do(
    namespace: str, given: tuple[str, ...], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = complaint(capsys, namespace, *add("LRMonitor"), *add(*given))
    assert [word for word in words if word not in said] == []
    assert given[0] in said


@pytest.mark.parametrize("name", KIND)
def test_help_has_words_for_every_argument(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli(NAMESPACES[0], f"--trainer.callbacks.help=lightning_lr.{name}")
    said = re.sub(r"\s+", " ", capsys.readouterr().out.split("Help for")[1])
    for argument in inspect.signature(KIND[name]).parameters:
        value = r"(?:\{\S*\}|[A-Z_]+)(?:, --\S+ [A-Z_]+)?"
        found = re.search(rf" --trainer.callbacks.{argument} {value} (.+?) \(type: (.+?), default: ", said)
        assert found, argument
        assert len(found[1]) > 15, argument
        assert "LRCallback" not in found[1]
        assert "Any" not in found[2]


def test_the_rules_of_the_finder_are_all_in_its_signature() -> None:
    hints = get_type_hints(llr.LRFinder.__init__)
    assert get_args(hints["suggest"]) == (BRACKET, *RULES)


# the ways to have all five -----------------------------------------------------------------------------------------


@each
def test_autopilot_goes_into_the_trainers_defaults(namespace: str) -> None:
    autopilot = llr.autopilot(warmup=None, finder={"steps": 20})
    made = cli(namespace, *add("Warmup", "steps=3"), callbacks=autopilot, max_epochs=3, log_every_n_steps=4)
    assert ours(made).keys() == {kind.__name__ for kind in KINDS.values()}
    made.trainer.fit(made.model, *loaders())
    assert ours(made)["LRMonitor"].story


@each
def test_each_can_have_arguments_of_its_own(namespace: str) -> None:
    class Command(importlib.import_module(f"{namespace}.cli").LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            for key, kind in KINDS.items():
                parser.add_lightning_class_args(kind, key)
            parser.set_defaults({"warmup.fraction": 0.05, "cooldown.fraction": 0.2})

    made = ours(cli(namespace, "--plateau.factor=0.5", "--finder.at=[0,500]", base=Command))
    defaults = {"patience": 10, "factor": 0.5}
    expected = llr.autopilot(plateau=defaults, finder={"at": [0, 500]}, warmup={}, cooldown={"fraction": 0.2})
    assert {name: plain(c) for name, c in made.items()} == {type(c).__name__: plain(c) for c in expected}
    with pytest.raises(ValueError, match="^factor must be in"):
        cli(namespace, "--plateau.factor=1.5", base=Command)


# the example -------------------------------------------------------------------------------------------------------


def told_by_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """What `examples/cli.py` prints at the end."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["cli.py", *args])
    capsys.readouterr()
    runpy.run_path(str(EXAMPLES / "cli.py"), run_name="__main__")
    return capsys.readouterr().out.split("What happened to the rate:\n")[1].splitlines()


@pytest.mark.skipif("pytorch_lightning" not in NAMESPACES, reason="the example uses it")
def test_the_example_trains_from_its_file_and_again_from_the_one_that_it_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    short = ["--trainer.max_epochs=4", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    once = told_by_example(monkeypatch, capsys, "fit", "--config", str(EXAMPLES / "cli.yaml"), *short)
    text = "\n".join(once)
    assert re.search(r"step \d+: LRFinder \(asked for at=0\): rate 0\.00", text)
    assert re.search(r"AdamW: first update at \S+, LRFinder \S+, Warmup", text)
    again = told_by_example(monkeypatch, capsys, *once[-1].removeprefix("Once more: python examples/cli.py ").split())
    assert again[:-1] == once[:-1]
    assert (tmp_path / "logs/cli/version_1/config.yaml").read_text() == (
        tmp_path / "logs/cli/version_0/config.yaml"
    ).read_text()
