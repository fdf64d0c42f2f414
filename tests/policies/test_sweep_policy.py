"""Sweeps and suggestions: losses in, rates out."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr.policies.curve_rules import RULES, steepest, suggest
from lightning_lr.policies.horizon import POWERS, Horizon
from lightning_lr.policies.suggestion import Suggestion
from lightning_lr.policies.sweep import SECOND_STEPS, SweepPolicy
from lightning_lr.policies.sweep_state import SweepState
from lightning_lr.policies.tried_rates import STEP
from lightning_lr.statistics.level import level_and_noise

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


def swept(loss_at, policy=None, **start):
    """Leads a sweep over losses that depend on the rate, the batch and the updates made since the start's weights."""
    policy = policy or SweepPolicy()
    state, now = policy.start(**start)
    made, turn = [], 0
    while now.rate is not None:
        turn = 0 if now.restore else turn
        made.append(now)
        state, now = policy.step(state, loss_at(now.rate, now.batch, turn))
        turn += 1
    return now.suggestion, made, state


BATCHES = [2.0 + 0.3 * math.sin(1.7 * batch**1.3) for batch in range(200)]
"""The losses of the start's weights on many batches: they differ by far more than any rate changes."""


def bowl(best, depth=0.1):
    """A loss that falls most at `best`, by little beside the noise between batches, and rises from five times it on."""

    def loss(rate, batch, turn):
        if rate == 0.0 or turn == 0:
            return BATCHES[batch]
        x = rate / best
        change = depth * turn * (x * math.exp(1.0 - x) - 0.3 * max(0.0, x - 5.0)) / 14.0
        return BATCHES[batch] - change * (1.0 + 0.01 * BATCHES[batch])

    return loss


def test_a_sweep_looks_then_ramps_once_and_every_trial_begins_with_a_restore_at_one_rate():
    _, made, state = descend(SweepPolicy(), 10.0, 0.05)
    starts = [i for i, now in enumerate(made) if now.restore]
    # each look is at the start's weights, whatever an optimizer does to them at rate 0
    assert starts == [*range(8), state.ramp_start, *(trial.start for trial in state.trials)]
    assert [now.rate for now in made[:8]] == [0.0] * 8
    starts = starts[7:]
    ramp = [now.rate for now in made[starts[1] : starts[2]]]
    assert ramp == sorted(ramp)
    assert ramp[0] == 1e-8
    for begin, end in zip(starts[2:], [*starts[3:], len(made)], strict=True):
        assert len({now.rate for now in made[begin:end]}) == 1


def test_all_rates_train_on_the_same_batches_and_are_scored_on_those_of_the_look():
    _, made, state = swept(bowl(0.01))
    assert [now.batch for now in made[:8]] == list(range(8))
    for trial in (trial for trial in state.trials if trial.losses is not None):
        batches = [now.batch for now in made[trial.start : trial.start + trial.length]]
        assert batches == [*range(8, trial.length), *range(8)]
    assert len({now.batch for now in made}) == max(trial.length for trial in state.trials)


def test_what_the_noise_between_batches_hides_is_seen_on_the_same_batches():
    suggestion, *_ = swept(bowl(0.01))
    assert suggestion.sure
    assert suggestion.low < 0.05
    assert 0.001 < suggestion.rate < 0.01
    # the same losses, of which nobody knows that they are of the same batches
    unpaired, _, _ = swept(bowl(0.01), paired=False)
    assert not unpaired.sure
    assert "unsure" in unpaired.words


@pytest.mark.parametrize("steps", [20, 30, 60, 100, 200, 300])
def test_a_longer_sweep_takes_a_second_longer_look_at_the_best(steps):
    suggestion, made, state = swept(bowl(0.01), SweepPolicy(steps=steps))
    lengths = sorted({trial.length for trial in state.trials})
    assert len(made) <= steps
    assert (len(lengths) == 2) == (steps >= 200)
    assert lengths[0] <= 14
    if steps >= 200:
        assert lengths[1] >= 28
        longest = [trial.rate for trial in state.trials if trial.length == lengths[1]]
        assert len(longest) >= 2
    assert 0.0005 < suggestion.rate < 0.02


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


def test_the_ramp_ends_at_the_first_loss_that_is_not_finite_and_the_trials_begin_at_a_tenth_of_that_rate():
    _, _, state = swept(lambda rate, batch, turn: NAN if turn and made_too_high(rate) else 2.0)
    assert state.bound is not None
    assert STEP**-0.5 <= state.trials[0].rate / (state.bound / 10.0) <= STEP**0.5


def made_too_high(rate):
    return rate > 0.01


def test_a_trial_that_blows_up_ends_early_and_a_lower_rate_follows():
    _, _, state = swept(lambda rate, batch, turn: NAN if batch == 12 and rate > 0.4 else 2.0)
    first, second = state.trials[:2]
    assert first.losses is None
    assert second.start - first.start == 5
    assert second.rate == pytest.approx(first.rate / STEP)


def test_a_rate_above_one_that_blew_up_is_never_suggested():
    """A dead network sits still at a high rate: that is not stability."""

    def loss(rate, batch, turn):
        if rate > 0.5:
            return 1.9
        return NAN if rate > 0.05 and turn > 3 else 2.0 - 0.001 * turn * (rate > 0.0)

    suggestion, *_ = swept(loss)
    assert suggestion.rate < 0.05


@pytest.mark.parametrize(
    ("loss_at", "words"),
    [
        (lambda rate, batch, turn: NAN, "first update"),
        (lambda rate, batch, turn: BATCHES[batch], "raise max_lr"),
        (lambda rate, batch, turn: 2.0 if turn == 0 or rate == 0.0 else NAN, "lower max_lr"),
    ],
    ids=["not finite", "flat", "blows up at every rate"],
)
def test_a_sweep_that_shows_nothing_is_refused_and_says_which_bound_to_move(loss_at, words):
    suggestion, *_ = swept(loss_at)
    assert suggestion.refused
    assert words in suggestion.words


def test_a_rate_that_does_very_well_is_followed_by_a_higher_one_and_others_by_a_lower_one():
    for depth, ratio in ((1.0, STEP), (0.001, 1.0 / STEP)):
        noise = random.Random(3)
        loss = bowl(0.02, depth)
        _, _, state = swept(
            lambda rate, batch, turn, loss=loss, noise=noise: loss(rate, batch, turn) + noise.gauss(0, 0.02)
        )
        assert state.trials[1].rate == pytest.approx(ratio * state.trials[0].rate)


def test_a_loss_still_falling_at_the_highest_rate_tried_is_unsure_and_says_what_may_find_more():
    suggestion, *_ = swept(lambda rate, batch, turn: BATCHES[batch] - 0.01 * turn * rate)
    assert suggestion.rate > 0.5
    assert suggestion.sure is False
    assert "a higher number of steps may find more" in suggestion.words
    low, *_ = swept(lambda rate, batch, turn: BATCHES[batch] - 0.01 * turn * rate, SweepPolicy(max_lr=0.3))
    assert "a higher max_lr may find more" in low.words


def test_a_loss_that_collapses_above_some_rate_is_followed_downwards_and_not_upwards():
    """A contrastive loss sits at the logarithm of the batch size above some rate; nothing blows up."""

    def loss(rate, batch, turn):
        if rate == 0.0 or turn == 0:
            return BATCHES[batch]
        return 3.9 if rate > 0.03 else BATCHES[batch] - 0.05 * turn * min(1.0, rate / 0.01)

    suggestion, *_ = swept(loss)
    assert suggestion.sure
    assert 0.001 < suggestion.rate < 0.03


def test_on_a_plateau_the_careful_end_is_taken_and_not_the_highest_stable_rate():
    """No rate lowers the loss; those above 0.2 raise it a little, and those above 5 beyond doubt."""
    noise = random.Random(5)

    def loss(rate, batch, turn):
        return BATCHES[batch] + noise.gauss(0.0, 0.01) + (0.0 if turn == 0 else 0.005 * rate + (rate > 5.0))

    suggestion, _, state = swept(loss)
    assert suggestion.sure is False
    assert "careful end" in suggestion.words
    lowest = min(trial.rate for trial in state.trials)
    assert suggestion.rate < lowest
    assert suggestion.low < suggestion.high


def test_the_longer_the_run_the_lower_the_share_of_the_best_rate():
    def pick(**horizon):
        return swept(bowl(0.01), horizon=Horizon(**horizon))[0].rate

    assert pick(updates=300) > pick(updates=3000) > pick(updates=30000)
    # a rate that falls at the end may be higher before
    assert pick(updates=3000, power=POWERS["falls"]["sgd"]) > pick(updates=3000, power=POWERS["stays"]["sgd"])


# -- a second opinion --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("best", "ratio", "words"),
    [
        (0.03, 1.0, "is kept"),
        (0.3, 3.0, "better beyond doubt"),
        (0.001, 1.0 / 3.0, "raises the loss"),
    ],
    ids=["right", "far too low", "too high"],
)
def test_a_second_opinion_changes_a_rate_only_beyond_doubt_and_by_a_bounded_ratio(best, ratio, words):
    suggestion, made, _ = swept(bowl(best, 0.5), around=0.01)
    assert suggestion.rate == pytest.approx(0.01 * ratio)
    assert words in suggestion.words
    assert suggestion.sure
    assert len(made) <= SECOND_STEPS


def test_on_a_plateau_a_second_opinion_keeps_the_rate():
    """At nine times the rate the loss falls by a millionth of itself, beyond doubt."""
    suggestion, *_ = swept(lambda rate, batch, turn: BATCHES[batch] - 1e-4 * turn * rate, around=0.01)
    assert suggestion.rate == 0.01


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
        assert now.rate == 0.0 or policy.min_lr * 0.999 <= now.rate <= policy.max_lr * 1.001
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
