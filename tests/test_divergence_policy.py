"""The divergence policy by tables: numbers in, verdicts out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr.policies.divergence import (
    DATA_LIMIT,
    HIGH_LIMIT,
    SKIP_LIMIT,
    DivergencePolicy,
)
from lightning_lr.policies.divergence_evidence import PATIENT
from lightning_lr.policies.divergence_limits import REVIEW
from lightning_lr.policies.divergence_state import DivergenceState, Signals, Verdict

NAN, INF = math.nan, math.inf
POLICY = DivergencePolicy()


def judge(
    signals: Iterable[Signals], policy: DivergencePolicy = POLICY, state: DivergenceState | None = None
) -> tuple[DivergenceState, list[Verdict]]:
    state = policy.start() if state is None else state
    verdicts = []
    for one in signals:
        state, verdict = policy.step(state, one)
        verdicts.append(verdict)
    return state, verdicts


def healthy(count: int, seed: int = 0, level: float = 1.0, noise: float = 0.1, rate: float = 1.0) -> list[Signals]:
    """A run at rest: log-normal losses and norms, the weights' change measured at every tenth update."""
    numbers = random.Random(seed)
    return [
        Signals(
            level * math.exp(numbers.gauss(0.0, noise)),
            math.exp(numbers.gauss(0.0, 0.2)),
            rate=rate,
            weight_change=0.03 if k % 10 == 9 else None,
            weight_age=10 if k % 10 == 9 else 0,
        )
        for k in range(count)
    ]


def learning(count: int = 200, seed: int = 0) -> list[Signals]:
    """A run that falls from 2.3 to about 0.4."""
    return [
        one._replace(loss=one.loss * (0.4 + 1.9 * math.exp(-k / 40)))
        for k, one in enumerate(healthy(count, seed, noise=0.05))
    ]


def kinds(verdicts: list[Verdict]) -> str:
    return "".join(v.kind[0] for v in verdicts)


@pytest.mark.parametrize(
    "bad",
    [
        Signals(NAN, 1.0),
        Signals(INF, 1.0),
        Signals(-INF, 1.0),
        Signals(1.0, NAN),
        Signals(1.0, INF),
        Signals(1.0, 1.0, finite=False),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 7, 8, 100])
def test_what_is_not_finite_is_never_applied_and_never_remembered(bad: Signals, before: int) -> None:
    state, _ = judge(healthy(before))
    after, verdict = POLICY.step(state, bad)
    assert verdict.kind == "skip"
    assert (after.losses, after.norms, after.memory) == (state.losses, state.norms, state.memory)


@pytest.mark.parametrize(("loss", "norm"), [(1e6, 1.0), (1.0, 1e6), (1e300, 1e300), (30.0, 1.0)])
def test_one_spike_costs_one_update_and_no_rate(loss: float, norm: float) -> None:
    state, _ = judge(healthy(100))
    state, verdicts = judge([Signals(loss, norm), *healthy(50, seed=1)], state=state)
    assert kinds(verdicts) == "s" + 50 * "a"
    assert state.memory.cap == INF


def test_a_run_that_explodes_from_update_three_on_is_rewound_to_its_start() -> None:
    _, verdicts = judge([Signals(2.3, 1.0), Signals(2.4, 1.0), Signals(60.0, 9.0), Signals(90.0, 9.0)])
    assert kinds(verdicts) == "aaar"
    assert verdicts[-1].healthy_before == 0
    assert verdicts[-1].factor == 0.5


def test_three_in_a_row_that_are_not_finite_are_a_rewind_unless_the_weights_are_in_order() -> None:
    state, _ = judge(healthy(100))
    _, verdicts = judge(3 * [Signals(NAN, 1.0)], state=state)
    assert kinds(verdicts) == "ssr"
    in_order = Signals(NAN, 1.0, weight_change=0.02, weight_age=5)
    later, verdicts = judge(10 * [in_order], state=state)
    assert kinds(verdicts) == 10 * "s"
    assert later.memory.cap == INF


def test_nothing_but_nan_at_healthy_weights_ends_the_run() -> None:
    _, verdicts = judge((DATA_LIMIT + 5) * [Signals(NAN, NAN)])
    assert "g" in kinds(verdicts)
    assert "healthy weights" in next(v.cause for v in verdicts if v.kind == "give_up")


def test_spikes_without_end_far_above_where_the_run_began_end_it_too() -> None:
    state, _ = judge(healthy(100))
    _, verdicts = judge((DATA_LIMIT + 5) * [Signals(1e30, 1.0, weight_change=0.02, weight_age=5)], state=state)
    assert kinds(verdicts)[: DATA_LIMIT + 1] == DATA_LIMIT * "s" + "g"


def test_a_raised_rate_that_drives_the_loss_up_is_capped_at_the_healthy_rate() -> None:
    state, _ = judge(learning())
    hot = [Signals(0.4 * 1.3**k, 1.0, rate=30.0) for k in range(20)]
    _, verdicts = judge(hot, state=state)
    first = next(v for v in verdicts if v.kind == "rewind")
    assert kinds(verdicts).index("r") <= 2 * HIGH_LIMIT
    assert first.factor == pytest.approx(1.0 / 30.0)
    assert 100 < first.healthy_before <= 200


def test_weights_that_move_faster_than_ever_at_a_new_rate_are_enough() -> None:
    state, _ = judge(healthy(200))
    state, verdict = POLICY.step(state, Signals(1.0, 1.0, rate=30.0))
    assert (verdict.kind, verdict.measure) == ("accept", True)
    state, verdict = POLICY.step(state, Signals(1.0, 1.0, rate=30.0, weight_change=0.5, weight_age=2))
    assert verdict.kind == "rewind"


@pytest.mark.parametrize("rate_rises", [True, False])
def test_a_loss_that_climbs_back_slowly_is_a_slow_divergence(rate_rises: bool) -> None:
    state, _ = judge(learning())
    climb = [
        one._replace(loss=one.loss * 0.4 * 1.02**k, rate=1.02**k if rate_rises else 1.0)
        for k, one in enumerate(healthy(150, seed=3, noise=0.05))
    ]
    _, verdicts = judge(climb, state=state)
    first = kinds(verdicts).index("r")
    assert first < 130
    assert verdicts[first].healthy_before < 200 + first - 24


def moving(losses: Iterable[float], pace: float, first: int = 1) -> list[Signals]:
    """Updates from the `first` after the start on, of weights that drift from it by `pace` times the root of their
    number."""
    drifts = [pace * math.sqrt(first + k) for k in range(600)]
    return [
        Signals(loss, 0.5, weight_change=drift, weight_age=first + k, drift=drift, drift_age=first + k)
        for k, (loss, drift) in enumerate(zip(losses, drifts, strict=False))
    ]


@pytest.mark.parametrize("pace", [0.3, 3.0])
def test_a_net_killed_by_its_first_updates_starts_again_at_a_lower_rate_each_time(pace: float) -> None:
    """The loss sits flat at chance, nothing is non-finite, nothing spikes."""
    state, factors = POLICY.start(), []
    for _ in range(4):
        for signals in moving(40 * [2.303], pace):
            state, verdict = POLICY.step(state, signals)
            if verdict.kind == "rewind":
                assert verdict.healthy_before == 0
                assert signals.drift_age == PATIENT
                factors.append(verdict.factor)
                break
    assert factors == [0.5**3, 0.5**6, 0.5**9, 0.5**12]


def test_a_start_that_explodes_and_overwrites_its_weights_is_backed_off_from_as_a_hot_one() -> None:
    _, verdicts = judge(moving([2.3, 2.4, 60.0, 90.0], 3.0))
    assert kinds(verdicts) == "aaar"
    assert verdicts[-1].factor == 0.5**3


def noisy(falls: Iterable[float], noise: float, seed: int) -> list[float]:
    numbers = random.Random(seed)
    return [2.3 * math.exp(-fall + (numbers.gauss(0, noise) if k > 2 else 0.0)) for k, fall in enumerate(falls)]


LEARNING: dict[str, tuple[list[float], float]] = {
    "a linear net, batches of 4": ([max(0.0, 0.02 * (k - 20)) for k in range(128)], 0.6),
    "it rises at first": ([-0.6 * math.sin(math.pi * min(k, 24) / 24) + 0.02 * k for k in range(128)], 0.3),
    "little to gain, but it falls": ([0.004 * k for k in range(128)], 0.01),
    "gained, and at rest": ([0.5 * (1 - math.exp(-k / 8)) for k in range(128)], 0.2),
}


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("pace", [0.2, 0.6, 3.0])
def test_weights_that_are_overwritten_are_no_fault_in_a_run_that_learns(name: str, pace: float) -> None:
    falls, noise = LEARNING[name]
    for seed in range(5):
        assert "r" not in kinds(judge(moving(noisy(falls, noise, seed), pace))[1])


@pytest.mark.parametrize(
    ("first", "later", "noise"),
    [(2.3, 2.35, 0.02), (2.3, 2.4, 0.15), (2.3, 9.0, 0.3), (4.0, 3.6, 0.03)],
    ids=["dead", "dead, batches of 4", "far above its start", "only the logits have shrunk"],
)
def test_a_run_that_learns_nothing_is_found_in_time(first: float, later: float, noise: float) -> None:
    for seed in range(5):
        numbers = random.Random(seed)
        losses = [first, 3 * first, 4 * first, *(later * math.exp(numbers.gauss(0, noise)) for _ in range(125))]
        assert "r" in kinds(judge(moving(losses, 0.4))[1])[:64]


def test_losses_below_zero_are_no_scale_for_what_is_learned() -> None:
    numbers = random.Random(0)
    losses = [-1.0 - 0.05 * k + numbers.gauss(0, 0.5) for k in range(128)]
    assert "r" not in kinds(judge(moving(losses, 1.0))[1])


def test_a_rate_too_low_looks_flat_too_and_is_left_alone() -> None:
    flat = [Signals(2.303, 0.5, weight_change=1e-4, weight_age=10, drift=1e-4 * k, drift_age=k) for k in range(1, 128)]
    assert kinds(judge(flat)[1]) == 127 * "a"


def test_weights_that_move_far_and_learn_are_left_alone() -> None:
    quick = [
        Signals(2.3 * math.exp(-k / 20), 1.0, weight_change=0.3, weight_age=1, drift=0.25 * math.sqrt(k), drift_age=k)
        for k in range(1, 128)
    ]
    assert kinds(judge(quick)[1]) == 127 * "a"


def test_a_start_that_fits_two_batches_and_explodes_leaves_no_limit_below_where_it_began() -> None:
    state, verdicts = judge(moving([1.0, 1e-4, 1e-6, 1e-6, 40.0, 30.0], 30.0))
    assert kinds(verdicts) == "aaaaar"
    _, verdicts = judge(moving(60 * [1.0], 0.01), state=state)
    assert kinds(verdicts) == 60 * "a"


def test_no_climb_is_measured_from_the_first_few_losses() -> None:
    """Eight losses that are low by chance, in noise of which the next reviews know little."""
    numbers = random.Random(0)
    losses = [math.exp(numbers.gauss(-0.8 if k < 8 else 0.0, 0.3)) for k in range(100)]
    assert "r" not in kinds(judge(moving(losses, 0.01))[1])


def heavy(seed: int) -> list[Signals]:
    """Means of 32 squared Student-t(3) errors: their variance is infinite."""
    numbers = random.Random(seed)

    def student() -> float:
        return numbers.gauss(0, 1) / math.sqrt(sum(numbers.gauss(0, 1) ** 2 for _ in range(3)) / 3)

    losses = [sum(student() ** 2 for _ in range(32)) / 32 for _ in range(600)]
    return [Signals(loss, math.sqrt(loss)) for loss in losses]


def shifted(times: float) -> list[Signals]:
    return learning(300) + [one._replace(loss=times * 0.4 * one.loss) for one in healthy(300, seed=5)]


def cycles(lowest: float) -> list[Signals]:
    """Warm restarts: the level follows the rate a little, the weights' change wholly."""
    rates = [lowest + (1 - lowest) * (1 + math.cos(math.pi * (k % 150) / 150)) / 2 for k in range(900)]
    return [
        one._replace(
            loss=one.loss * (0.4 + 1.9 * math.exp(-k / 60)) * (1 + 0.2 * rate),
            rate=rate,
            weight_change=None if one.weight_change is None else one.weight_change * rate,
        )
        for k, (one, rate) in enumerate(zip(healthy(900, seed=4, noise=0.05), rates, strict=True))
    ]


QUIET: dict[str, list[Signals]] = {
    **{f"heavy tails {seed}": heavy(seed) for seed in range(3)},
    "harder data, and for good": shifted(3.0),
    "much harder data, and for good": shifted(5.0),
    "dropout switched off": shifted(0.6),
    "warm restarts": cycles(1e-4),
    "cyclic rates": cycles(0.1),
    "warm-up": [one._replace(rate=min(1.0, (k + 1) / 100)) for k, one in enumerate(learning(300))],
    "nothing learned yet": healthy(400, level=2.3, noise=0.01),
    "a perfect fit": [one._replace(loss=one.loss * 2.3 * 0.9**k) for k, one in enumerate(healthy(400))],
    "a hinge loss, often zero": [
        one._replace(loss=max(0.0, one.loss - min(1.0, k / 50))) for k, one in enumerate(healthy(400))
    ],
    "losses below zero": [one._replace(loss=-1000.0 + 5 * one.loss) for one in healthy(400)],
    "losses around zero": [one._replace(loss=one.loss - 1.0) for one in healthy(400)],
    "no gradient at all": [one._replace(grad_norm=0.0) for one in healthy(200)],
}


@pytest.mark.parametrize("name", QUIET)
def test_healthy_runs_are_never_rewound(name: str) -> None:
    state, verdicts, measure = POLICY.start(), [], False
    for one in QUIET[name]:
        if measure and one.weight_change is None:
            one = one._replace(weight_change=0.03 * one.rate, weight_age=10)
        state, verdict = POLICY.step(state, one)
        verdicts.append(verdict)
        measure = verdict.measure
    assert "r" not in kinds(verdicts)
    assert kinds(verdicts).count("s") <= SKIP_LIMIT
    assert state.memory.cap == INF


def test_ten_bad_batches_cost_ten_updates_when_the_weights_are_in_order() -> None:
    state, _ = judge(healthy(150))
    bad = 10 * [Signals(1e12, 1e12, weight_change=0.02, weight_age=5)]
    state, verdicts = judge([*bad, *healthy(40, seed=9)], state=state)
    assert kinds(verdicts) == 10 * "s" + 40 * "a"


def test_the_rate_grows_back_to_just_under_the_one_that_failed_and_the_second_failure_lowers_the_ceiling() -> None:
    state, _ = judge(healthy(200))
    nan = 3 * [Signals(NAN, 1.0)]
    state, verdicts = judge([*nan, *healthy(600, seed=1)], state=state)
    factors = [v.factor for v in verdicts]
    assert factors[2] == 0.5
    assert factors[2:] == sorted(factors[2:])
    assert factors[-1] == pytest.approx(0.95)
    state, verdicts = judge([*nan, *healthy(1500, seed=2)], state=state)
    assert verdicts[-1].factor == pytest.approx(0.475)


def test_rewinds_without_progress_back_off_further_each_time_and_end_in_giving_up() -> None:
    policy = DivergencePolicy(max_rewinds=4)
    state, _ = judge(healthy(200), policy)
    found = []
    for _ in range(5):
        state, verdicts = judge([*healthy(1, seed=7), *(3 * [Signals(NAN, 1.0)])], policy, state)
        found.append((verdicts[-1].kind, verdicts[-1].factor))
    assert found == [
        ("rewind", 0.5),
        ("rewind", 0.5**3),
        ("rewind", 0.5**6),
        ("rewind", 0.5**9),
        ("give_up", 0.5**12),
    ]


def test_a_rewind_of_somebody_else_forgets_what_came_after_the_snapshot() -> None:
    state, _ = judge(healthy(100))
    after = POLICY.rewound(state, 50)
    assert after.update == 100
    assert all(block.update <= 50 for block in after.memory.blocks)
    assert after.memory.proven <= 50
    assert after.memory.cap == INF


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spike_threshold": 1.0}, "spike_threshold must be finite and >= 3, got 1.0"),
        ({"spike_threshold": NAN}, "spike_threshold must be finite and >= 3, got nan"),
        ({"window": 16}, "window must be a whole number >= 32, got 16"),
        ({"window": 100}, "window must be a multiple of 8, got 100: try 104"),
        ({"backoff": 1.0}, "backoff must be in"),
        ({"backoff": 0.0}, "backoff must be in"),
        ({"max_rewinds": 0}, "max_rewinds must be a whole number >= 1, got 0"),
        ({"regrow": True}, "regrow must be a whole number >= 8, got True"),
    ],
)
def test_a_setting_outside_its_bounds_is_refused_with_bound_value_and_remedy(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        DivergencePolicy(**settings)


def test_a_state_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="saved in version 2, and version 1 can be read"):
        DivergenceState.from_dict({**POLICY.start().to_dict(), "version": 2})


LOSSES = st.one_of(
    st.floats(1e-3, 10.0), st.floats(-5.0, 5.0), st.sampled_from([NAN, INF, -INF, 0.0, 1e30, 1e308, 1e-300])
)
SIGNALS = st.builds(
    Signals,
    loss=LOSSES,
    grad_norm=st.one_of(st.floats(0.0, 10.0), st.sampled_from([NAN, INF, 1e30])),
    finite=st.sampled_from([True, True, True, False]),
    rate=st.sampled_from([1.0, 0.1, 30.0]),
    weight_change=st.one_of(st.none(), st.floats(0.0, 2.0), st.just(INF), st.just(NAN)),
    weight_age=st.integers(0, 20),
    drift=st.one_of(st.none(), st.floats(0.0, 10.0), st.just(NAN)),
    drift_age=st.integers(0, 200),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SIGNALS, max_size=60), st.integers(0, 60))
def test_any_signals_give_the_same_verdicts_again_also_when_saved_in_between(signals: list[Signals], cut: int) -> None:
    whole, verdicts = judge(signals)
    state, first = judge(signals[:cut])
    saved = json.loads(json.dumps(state.to_dict()))
    again = DivergenceState.from_dict(saved)
    assert again == state
    end, rest = judge(signals[cut:], state=again)
    assert (end, first + rest) == (whole, verdicts)
    for one, verdict in zip(signals, verdicts, strict=True):
        if not (one.finite and math.isfinite(one.loss) and math.isfinite(one.grad_norm)):
            assert verdict.kind != "accept"
        assert 0.0 < verdict.factor <= 1.0
        assert verdict.kind == "accept" or verdict.cause


@settings(max_examples=60, deadline=None)
@given(st.lists(SIGNALS, max_size=40), st.integers(0, 3))
def test_what_is_not_accepted_never_enters_the_window(burst: list[Signals], seed: int) -> None:
    state, _ = judge(healthy(60, seed))
    for one in burst:
        before = state
        state, verdict = POLICY.step(state, one)
        if verdict.kind == "skip":
            assert (state.losses, state.norms, state.memory.blocks) == (
                before.losses,
                before.norms,
                before.memory.blocks,
            )
        if verdict.kind == "rewind":
            assert state.losses == ()
            assert set(state.memory.blocks) <= set(before.memory.blocks) | {
                block for block in state.memory.blocks if block.update <= verdict.healthy_before
            }


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([NAN, INF, 1e6, 1e30, 1e300]), min_size=1, max_size=SKIP_LIMIT), st.integers(0, 5))
def test_a_burst_blinds_nothing(burst: list[float], seed: int) -> None:
    """After any burst of bad values, healthy ones are accepted and the next spike is seen."""
    state, _ = judge(healthy(100, seed))
    in_order = [Signals(loss, 1.0, weight_change=0.02, weight_age=4) for loss in burst]
    state, verdicts = judge([*in_order, *healthy(4 * REVIEW, seed + 1), Signals(1e6, 1.0)], state=state)
    assert kinds(verdicts) == len(burst) * "s" + 4 * REVIEW * "a" + "s"
