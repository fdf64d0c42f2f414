"""Streams: whatever a run meets again and again, no rule loses it in small steps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr.policies.copy_policy import CopyPolicy
from lightning_lr.policies.divergence import DivergencePolicy
from lightning_lr.policies.verdict import Signals

UPDATES = 100_000


class World:
    """A run without a model: its loss has fallen from 10 to 1, and everything else is one stream's own.

    Args:
        random: draws all noise.
        breaks: whether the weights break with this update.
        data: what the data makes of the loss that the weights would have, at this update.
        interval: updates between copies.
    """

    def __init__(
        self,
        draw: random.Random,
        breaks: Callable[[int], float],
        data: Callable[[int, float], float],
        interval: int = 100,
    ) -> None:
        self.draw, self.breaks, self.data, self.interval = draw, breaks, data, interval
        # how far training has come, and by what the weights are broken: 0 not, inf to something that is not finite
        self.now = (0, 0.0)
        self.lost = self.gave_up = 0
        self.factor = 1.0

    def loss(self, weights: tuple[int, float], k: int) -> float:
        learned, broken = weights
        healthy = (1.0 + 9.0 * math.exp(-learned / 1000.0)) * math.exp(self.draw.gauss(0.0, 0.05))
        if broken == math.inf:
            return math.nan
        return self.data(k, healthy + broken)

    def run(self, policy: DivergencePolicy, updates: int = UPDATES) -> None:
        copying = CopyPolicy()
        state = policy.promoted(policy.copied(policy.start(1.0)))
        copies = {"newest": self.now, "best": self.now}
        taken = since = 0
        look, unproven = None, False
        for k in range(updates):
            if broken := self.breaks(k):
                self.now = (self.now[0], broken)
            weights = self.now if look in (None, "present") else copies[look]
            loss = self.loss(weights, k)
            finite = math.isfinite(loss)
            norm = abs(loss) if finite else math.nan
            here = look in (None, "present")
            signals = Signals(loss, norm, 1.0, look or "present", here and self.now[1] == math.inf, 1.0)
            state, verdict = policy.step(state, signals)
            look, self.factor = verdict.look, verdict.factor
            if verdict.kind in ("rewind", "give_up"):
                before = self.now[0]
                copies["newest"] = self.now = copies[verdict.to]
                self.lost += before - self.now[0] + 1
                taken = since = k
                self.gave_up += verdict.kind == "give_up"
            elif verdict.kind != "accept":
                self.lost += 1
            else:
                self.now = (self.now[0] + 1, self.now[1])
            if unproven and verdict.kind not in ("rewind", "give_up") and not verdict.copy:
                state, copies["newest"] = policy.dropped(state), copies["best"]
            unproven = verdict.copy and copying.due(clock=k, last=taken, since=k - since, size=0)
            if unproven:
                if policy.settled(state):
                    state, copies["best"] = policy.promoted(state), copies["newest"]
                state, copies["newest"], taken = policy.copied(state), self.now, k


def nothing(k: int) -> float:
    return 0.0


def same(k: int, loss: float) -> float:
    return loss


STREAMS = {
    "a second task as every second batch": (nothing, lambda k, x: 5.0 * x if k > 1000 and k % 2 else x, 100),
    "NaN every 300": (nothing, lambda k, x: math.nan if k % 300 == 299 else x, 100),
    "weights broken every 300": (lambda k: 9.0 if k % 300 == 299 else 0.0, same, 500),
    "weights not finite every 300": (lambda k: math.inf if k % 300 == 299 else 0.0, same, 500),
    "a slow rise": (nothing, lambda k, x: x * (1.0 + 0.6 * min(1.0, max(0.0, (k - 5000) / 20000))), 100),
    "a bit flip every 20,000": (lambda k: math.inf if k % 20000 == 19999 else 0.0, same, 500),
    "a loss of another sign for 15 updates": (nothing, lambda k, x: -x if k > 5000 and k % 10000 < 15 else x, 100),
    "bad data for 1,000 batches": (nothing, lambda k, x: x * 50.0 if 30000 <= k < 31000 else x, 100),
    "harder data for good": (nothing, lambda k, x: x * 4.0 if k > 20000 else x, 100),
}


@pytest.mark.parametrize("name", STREAMS)
@settings(max_examples=1, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**31), shift=st.integers(0, 400))
def test_no_stream_is_lost_in_small_steps(name: str, seed: int, shift: int) -> None:
    breaks, data, interval = STREAMS[name]
    world = World(random.Random(seed), lambda k: breaks(k + shift), lambda k, x: data(k + shift, x), interval)
    world.run(DivergencePolicy())
    assert world.lost <= 0.05 * UPDATES
    assert world.factor == 1.0
    assert not world.gave_up
