"""The plateau policy against torch's `ReduceLROnPlateau`, and the trend test against noise and outliers."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_lr import PlateauPolicy, PlateauState
from lightning_lr.statistics.trend import probability_of_decrease, probability_of_decrease_robust


def decays_of(policy: PlateauPolicy, values: list[float]) -> list[int]:
    state, decays = PlateauState(), []
    for i, value in enumerate(values):
        state, decay = policy.step(state, value)
        if decay:
            decays.append(i)
    assert state.decays == len(decays)
    return decays


def torch_decays(policy: PlateauPolicy, values: list[float]) -> list[int]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = ReduceLROnPlateau(
        optimizer,
        mode=policy.mode,
        factor=0.999,
        patience=policy.patience,
        threshold=policy.threshold,
        threshold_mode=policy.threshold_mode,
        cooldown=policy.cooldown,
        eps=0.0,
    )
    decays = []
    for i, value in enumerate(values):
        before = optimizer.param_groups[0]["lr"]
        scheduler.step(value)
        if optimizer.param_groups[0]["lr"] != before:
            decays.append(i)
    return decays


# few different values, so that ties and plateaus are common
values = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0, 0.9999, 0.999, 0.5, -1.0, -0.5]), st.floats(-1e6, 1e6)), max_size=60
)
policies = st.builds(
    PlateauPolicy,
    mode=st.sampled_from(["min", "max"]),
    patience=st.integers(0, 6),
    threshold=st.sampled_from([0.0, 1e-4, 0.01, 0.5]),
    threshold_mode=st.sampled_from(["rel", "abs"]),
    cooldown=st.integers(0, 4),
)


@settings(max_examples=3000, deadline=None)
@given(policies, values)
def test_patience_decays_exactly_where_torch_does(policy: PlateauPolicy, series: list[float]) -> None:
    assert decays_of(policy, series) == torch_decays(policy, series)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(policies, st.builds(PlateauPolicy, test=st.just("trend"), patience=st.integers(3, 9))),
    values,
    st.integers(0, 60),
)
def test_a_state_saved_anywhere_goes_on_as_if_it_had_not_been(
    policy: PlateauPolicy, series: list[float], cut: int
) -> None:
    state = PlateauState()
    for value in series[:cut]:
        state, _ = policy.step(state, value)
    restored = PlateauState.from_dict(json.loads(json.dumps(state.to_dict())))
    assert restored == state
    for value in series[cut:]:
        state, decay = policy.step(state, value)
        restored, decay_restored = policy.step(restored, value)
        assert decay == decay_restored
    assert restored == state


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("test", ["patience", "trend"])
def test_a_value_that_is_not_finite_is_no_bad_check(value: float, test: str) -> None:
    policy = PlateauPolicy(patience=3, test=test)
    state, _ = policy.step(PlateauState(), 1.0)
    for _ in range(20):
        after, decay = policy.step(state, value)
        assert (after, decay) == (state, False)


def test_resting_improves_the_best_but_never_counts_against_the_rate() -> None:
    policy, state = PlateauPolicy(patience=0), PlateauState()
    for value in [1.0, 2.0, 3.0, 0.5, 2.0]:
        state, decay = policy.step(state, value, resting=True)
        assert not decay
    assert state == PlateauState(best=0.5)
    assert policy.step(state, 2.0)[1]


def noisy(slope: float, count: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [2.0 + slope * i + rng.gauss(0.0, 0.3) for i in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_trend_waits_while_a_noisy_series_falls_and_decays_soon_after_it_stops(seed: int) -> None:
    policy = PlateauPolicy(test="trend", patience=200)
    falling = noisy(-0.002, 1000, seed)
    flat = [v - 2.0 for v in noisy(0.0, 800, seed + 100)]
    decays = decays_of(policy, falling + flat)
    assert decays
    assert all(i >= 1000 for i in decays)
    assert decays[0] < 1500


@pytest.mark.parametrize("outlier", [1e3, 1e100])
def test_trend_is_not_fooled_by_outliers(outlier: float) -> None:
    falling = noisy(-0.003, 1000, 0)
    for i in range(30, 1000, 97):
        falling[i] = outlier
    assert decays_of(PlateauPolicy(test="trend", patience=200), falling) == []


def test_trend_remembers_no_more_than_its_window() -> None:
    policy, state = PlateauPolicy(test="trend", patience=20), PlateauState()
    for value in noisy(-0.01, 500, 0):
        state, _ = policy.step(state, value)
    assert len(state.window) == 20


@pytest.mark.parametrize("seed", range(5))
def test_probability_of_decrease_is_the_normal_tail_of_the_least_squares_slope(seed: int) -> None:
    series = noisy(-0.01, 40, seed)
    x, y = torch.arange(40.0, dtype=torch.float64), torch.tensor(series, dtype=torch.float64)
    design = torch.stack([torch.ones_like(x), x], dim=1)
    solution = torch.linalg.lstsq(design, y.unsqueeze(1)).solution.squeeze(1)
    residual = ((y - design @ solution) ** 2).sum()
    error = (residual / 38 / ((x - x.mean()) ** 2).sum()).sqrt()
    expected = torch.distributions.Normal(0.0, 1.0).cdf(-solution[1] / error)
    assert probability_of_decrease(series) == pytest.approx(expected.item(), abs=1e-9)


def test_probability_of_decrease_at_its_edges() -> None:
    assert probability_of_decrease([]) == 0.5
    assert probability_of_decrease([1.0, 0.0]) == 0.5
    assert probability_of_decrease([3.0, 2.0, 1.0]) == 1.0
    assert probability_of_decrease([1.0, 2.0, 3.0]) == 0.0
    small, large = [1.0, -1.0, 1.0, -1.0], [1e300, -1e300, 1e300, -1e300]
    assert probability_of_decrease(large) == pytest.approx(probability_of_decrease(small))
    assert probability_of_decrease_robust([4.0, 3.0, 2.0, 1.0]) == 1.0


BAD = [
    ({"mode": "less"}, "mode must be 'min' or 'max', got 'less'"),
    ({"test": "slope"}, "test must be 'patience' or 'trend', got 'slope'"),
    ({"threshold_mode": "ratio"}, "threshold_mode must be 'rel' or 'abs'"),
    ({"patience": -1}, "patience must be a whole number >= 0, got -1"),
    ({"patience": 2.5}, "patience must be a whole number >= 0, got 2.5"),
    ({"patience": 2, "test": "trend"}, "patience must be a whole number >= 3, got 2"),
    ({"cooldown": -1}, "cooldown must be a whole number >= 0"),
    ({"threshold": math.nan}, "threshold must be in"),
    ({"threshold": -0.1}, "threshold must be in"),
    ({"threshold": 1.0}, "threshold must be in"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_settings_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PlateauPolicy(**arguments)  # type: ignore[arg-type]


def test_forgetting_keeps_the_best() -> None:
    state = PlateauState(best=1.0, bad_checks=3, window=(1.0, 2.0), since_test=1, decays=2)
    assert PlateauPolicy().forget(state) == replace(state, bad_checks=0, window=(), since_test=0)
