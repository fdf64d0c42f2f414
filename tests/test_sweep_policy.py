"""Sweeps and suggestions: losses in, rates out."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr.policies.suggestion import RULES, Suggestion, level_and_noise, steepest, suggest
from lightning_lr.policies.sweep import MARGIN, SweepPolicy, SweepState

NAN = math.nan
RATES = [10.0 ** (-7 + 8 * i / 39) for i in range(40)]
TYPICAL = [2.3 - 1.8 / (1.0 + (3e-3 / rate) ** 1.5) + (rate / 0.3) ** 2 for rate in RATES]
"""Flat, then down around 3e-3, lowest at 0.02, then up."""
DECADES = [10.0**e for e in range(-7, 2)]


def descend(policy, sharpness, noise=0.0, seed=0, momentum=0.9, floor=0.0, scale=1.0):
    """Sweeps over gradient descent with momentum on `sharpness * w**2 / 2`, whose best rate is near 1 / sharpness."""
    draw = random.Random(seed)
    weight, speed = 1.0, 0.0
    state, now = policy.start()
    made = []
    while now.rate is not None:
        if now.restore:
            weight, speed = 1.0, 0.0
        made.append(now)
        loss = scale * (floor + weight**2 + noise * draw.gauss(0.0, 1.0)) if abs(weight) < 1e100 else math.inf
        state, now = policy.step(state, loss)
        speed = momentum * speed + sharpness * weight
        weight -= made[-1].rate * speed
    return now.suggestion, made, state


# -- the known rules on a curve ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [("steepest", 1e-3, 5e-3), ("minimum", 5e-4, 3e-3), ("valley", 1e-6, 5e-3), ("slide", 1e-7, 3e-2)],
)
def test_each_known_rule_reads_its_rate_off_a_typical_curve(rule, low, high):
    suggestion = suggest(rule, RATES, TYPICAL)
    assert low < suggestion.rate < high
    assert rule in suggestion.words


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([2.3] * 9, "flat"),
        ([NAN] * 9, "first update"),
        ([2.3, 2.3, NAN, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3], "lower min_lr"),
        ([2.3, 2.3, 2.3, 2.3, 2.3, 2.3, 2.3, math.inf, 1.0], "fell at no rate"),
        ([2.3, 2.3, 2.3, 2.3, 2.2, 2.0, 1.5, 1.0, 0.5], "raise max_lr"),
    ],
    ids=["flat", "all NaN", "NaN early", "never falls", "still falling"],
)
def test_a_curve_that_shows_nothing_is_refused_in_words(rule, losses, words):
    suggestion = suggest(rule, DECADES, losses)
    assert suggestion.refused
    assert words in suggestion.words


@pytest.mark.parametrize("rule", RULES)
def test_one_outlier_does_not_move_a_known_rule(rule):
    hit = list(TYPICAL)
    hit[5] = 1e6
    assert suggest(rule, RATES, hit).rate == pytest.approx(suggest(rule, RATES, TYPICAL).rate)


def test_steepest_is_taken_over_the_log_rate_so_that_the_lowest_rate_does_not_always_win():
    rates = [10.0 ** (-8 + 9 * i / 59) for i in range(60)]
    losses = [2.3 - 1.8 / (1.0 + (3e-3 / rate) ** 1.5) for rate in rates]
    assert 1e-3 < steepest(rates, losses) < 1e-2


def test_nothing_after_the_first_loss_that_is_not_finite_counts():
    cut = [*TYPICAL[:36], NAN]
    assert suggest("minimum", RATES[:37], cut) == suggest("minimum", RATES[:39], [*cut, -5.0, -9.0])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: suggest("best", DECADES, [1.0] * 9), "'steepest', 'valley', 'slide', 'minimum', got 'best'"),
        (lambda: suggest("valley", DECADES, [1.0] * 3), "got 9 rates and 3 losses"),
        (lambda: SweepPolicy(min_lr=1.0, max_lr=0.1), "0 < min_lr < max_lr, got 1.0 and 0.1"),
        (lambda: SweepPolicy(min_lr=0.0), "got 0.0 and 10.0"),
        (lambda: SweepPolicy(max_lr=NAN), "got 1e-08 and nan"),
        (lambda: SweepPolicy(steps=19), "whole number >= 20, got 19"),
        (lambda: SweepPolicy(suggest="best"), "'bracket', 'steepest'"),
    ],
)
def test_a_wrong_argument_is_answered_with_bound_and_value(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)


def test_noise_is_never_less_than_a_hundredth_of_the_level():
    assert level_and_noise([2.0, 2.0, 2.0]) == (2.0, 0.02)
    assert level_and_noise([1.0, 3.0]) == (2.0, 1.0)


# -- the sweep ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharpness", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2])
def test_the_bracket_finds_a_rate_that_trains_whatever_the_sharpness(sharpness, noise):
    suggestion, made, _ = descend(SweepPolicy(), sharpness, noise)
    assert 0.005 < suggestion.rate * sharpness < 1.0
    assert len(made) <= 60


@pytest.mark.parametrize("noise", [0.02, 0.1])
def test_picks_of_several_seeds_lie_at_most_ten_times_apart(noise):
    rates = [descend(SweepPolicy(), 10.0, noise, seed)[0].rate for seed in range(10)]
    assert max(rates) / min(rates) < 10.0


def test_a_sweep_ramps_once_and_every_trial_begins_with_a_restore_at_one_rate():
    _, made, state = descend(SweepPolicy(), 10.0, 0.05)
    starts = [i for i, now in enumerate(made) if now.restore]
    assert starts == [trial.start for trial in state.trials]
    ramp = [now.rate for now in made[: starts[0]]]
    assert ramp == sorted(ramp)
    assert ramp[0] == 1e-8
    for begin, end in zip(starts, [*starts[1:], len(made)], strict=True):
        assert len({now.rate for now in made[begin:end]}) == 1


@pytest.mark.parametrize("rule", RULES)
def test_a_known_rule_gets_a_geometric_ramp_from_min_to_max(rule):
    policy = SweepPolicy(min_lr=1e-6, max_lr=1.0, steps=40, suggest=rule)
    state, now = policy.start()
    rates = []
    while now.rate is not None:
        rates.append(now.rate)
        state, now = policy.step(state, 1.0)
    assert rates == pytest.approx([10.0 ** (-6 + 6 * i / 39) for i in range(40)])
    assert "flat" in now.suggestion.words


def test_the_ramp_ends_at_the_first_loss_that_is_not_finite():
    policy = SweepPolicy()
    state, now = policy.start()
    for _ in range(9):
        state, now = policy.step(state, 2.0)
    blew_up_at = state.rates[-2]
    state, now = policy.step(state, NAN)
    assert now.restore
    assert now.rate == pytest.approx(blew_up_at / 10.0)


def test_a_trial_that_blows_up_ends_early_and_a_lower_rate_follows():
    policy = SweepPolicy()
    state, now = policy.start()
    while not now.restore:
        state, now = policy.step(state, 2.0)
    high = now.rate
    state, now = policy.step(state, 2.0)
    state, now = policy.step(state, NAN)
    assert now.restore
    assert now.rate == pytest.approx(high / 3.0)


def test_a_rate_above_one_that_blew_up_is_never_suggested():
    """A dead network sits still at a high rate: that is not stability."""
    policy = SweepPolicy()
    state, now = policy.start()
    while now.rate is not None:
        dead = now.rate > 1.0
        state, now = policy.step(state, 1.9 if dead else NAN if now.rate > 0.05 and state.trial_length else 2.0)
    assert now.suggestion.rate is None or now.suggestion.rate < 0.05


@pytest.mark.parametrize(
    ("loss_at", "words"),
    [
        (lambda rate, turn: NAN, "first update"),
        (lambda rate, turn: 2.0, "raise max_lr"),
        (lambda rate, turn: 2.0 if turn == 0 else NAN, "lower max_lr"),
    ],
    ids=["not finite", "flat", "blows up at every rate"],
)
def test_a_sweep_that_shows_nothing_is_refused_and_says_which_bound_to_move(loss_at, words):
    policy = SweepPolicy()
    state, now = policy.start()
    turn = 0
    while now.rate is not None:
        turn = 0 if now.restore else turn
        state, now = policy.step(state, loss_at(now.rate, turn))
        turn += 1
    assert now.suggestion.refused
    assert words in now.suggestion.words


def test_a_trial_slower_than_the_ramp_is_followed_by_a_higher_rate():
    policy = SweepPolicy()
    state, now = policy.start()
    for loss in [2.0] * 10 + [1.0, 1.7, 1.7]:
        state, now = policy.step(state, loss)
    first, turn = now.rate, 0
    while now.rate == first:
        state, now = policy.step(state, 2.0 - 0.03 * turn)
        turn += 1
    assert state.trials[0].mean > 1.0
    assert now.rate == pytest.approx(3.0 * first)


def test_a_loss_still_falling_at_the_highest_rate_names_the_bound_to_move():
    policy = SweepPolicy()
    state, now = policy.start()
    turn = 0
    while now.rate is not None:
        turn = 0 if now.restore else turn
        state, now = policy.step(state, 2.0 - 0.01 * turn * now.rate)
        turn += 1
    assert now.suggestion.rate == pytest.approx(2.7)
    assert "higher max_lr" in now.suggestion.words


def test_a_ramp_that_loses_half_of_its_gain_has_turned():
    """A dead network may sit below the level that it started from."""
    policy = SweepPolicy()
    state, now = policy.start()
    for loss in [2.0] * 10 + [1.0, 1.7, 1.7]:
        state, now = policy.step(state, loss)
    assert state.bound == pytest.approx(state.rates[10])
    assert now.restore


def test_without_any_decrease_the_highest_stable_rate_takes_the_place_of_the_best():
    """A plateau at the start of training: only the blow-up can be seen in so few updates."""
    policy = SweepPolicy()
    state, now = policy.start()
    while now.rate is not None:
        state, now = policy.step(state, 2.0 if now.rate < 0.5 else 50.0)
    stable = max(trial.rate for trial in state.trials if trial.mean is not None)
    assert now.suggestion.rate == pytest.approx(MARGIN * stable)
    assert "no trial lowered the loss" in now.suggestion.words


def test_in_mid_run_a_rate_that_raises_the_loss_is_not_the_pick_only_because_it_is_stable():
    policy = SweepPolicy()
    state, now = policy.start()
    while now.rate is not None:
        trained = bool(state.trial_length)
        state, now = policy.step(state, 2.0 if not trained or now.rate < 0.5 else 2.1)
    calm = max(trial.rate for trial in state.trials if trial.mean is not None and trial.mean < 2.05)
    assert any(trial.rate > calm for trial in state.trials)
    assert now.suggestion.rate is None or now.suggestion.rate == pytest.approx(MARGIN * calm)


# -- properties --------------------------------------------------------------------------------------------------------

LOSSES = st.lists(
    st.one_of(st.floats(0.0, 10.0), st.floats(-1e3, 1e6), st.sampled_from([NAN, math.inf, -math.inf, 1e308])),
    min_size=1,
    max_size=60,
)
POLICIES = st.builds(
    SweepPolicy,
    min_lr=st.sampled_from([1e-8, 1e-5]),
    max_lr=st.sampled_from([1e-3, 1.0, 10.0]),
    steps=st.integers(20, 80),
    suggest=st.sampled_from(["bracket", *RULES]),
)


@settings(max_examples=200, deadline=None)
@given(POLICIES, LOSSES)
def test_whatever_the_losses_a_sweep_ends_in_time_within_its_bounds_and_with_words(policy, losses):
    state, now = policy.start()
    made = 0
    while now.rate is not None:
        assert policy.min_lr * 0.999 <= now.rate <= policy.max_lr * 1.001
        state, now = policy.step(state, losses[made % len(losses)])
        made += 1
        assert made <= policy.steps
    assert now.restore
    assert now.suggestion.words
    if now.suggestion.rate is not None:
        assert policy.min_lr * 0.0999 <= now.suggestion.rate <= policy.max_lr * 1.001


@settings(max_examples=100, deadline=None)
@given(POLICIES, LOSSES)
def test_a_state_that_went_through_a_file_goes_on_as_if_it_had_not(policy, losses):
    state, now = policy.start()
    copy = state
    for loss in losses:
        if now.rate is None:
            assert Suggestion.from_dict(json.loads(json.dumps(now.suggestion.to_dict()))) == now.suggestion
            break
        state, now = policy.step(state, loss)
        copy = SweepState.from_dict(json.loads(json.dumps(copy.to_dict())))
        copy, again = policy.step(copy, loss)
        assert again == now
    assert repr(copy) == repr(state)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2.0**-10, 0.25, 2.0**12]))
def test_the_unit_of_the_loss_does_not_matter(seed, scale):
    plain, _, _ = descend(SweepPolicy(), 10.0, 0.05, seed, floor=1.0)
    scaled, _, _ = descend(SweepPolicy(), 10.0, 0.05, seed, floor=1.0, scale=scale)
    assert scaled.rate == plain.rate


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(RULES)), st.lists(st.floats(-1e6, 1e6), min_size=0, max_size=60))
def test_a_known_rule_answers_within_the_curve_or_refuses(rule, losses):
    rates = [10.0 ** (-8 + 0.15 * i) for i in range(len(losses))]
    suggestion = suggest(rule, rates, losses)
    assert suggestion.refused or rates[0] / 10.0 <= suggestion.rate <= rates[-1]
