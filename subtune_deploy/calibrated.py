"""Latency fitted to a few measurements of a device, for any plan of one backbone, each prediction with its error.

    model = uncalibrated(base_works)                   # knows that the base takes 1, and what is plausible
    model = model.learn(works_13_14, 1.27, 0.01)       # a graph measured beside the base: ratio and its error
    model.predict(works_9_11)                          # Predicted(ratio=1.45, deviation=0.02)
    model.most_telling(candidates)                     # which of them to measure next

A node's use takes `versions` x fixed + `streams` x moving. Both are what its costs make likely, with rates that are
the same for all nodes, plus what blocks of its kind have of their own. All of it is Gaussian and linear, so that a
handful of measurements suffices where there are more unknowns than that. Times are relative to the base's: ratios are
what interleaved measurements know well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .work import Cost, Use, Work, unpacked

RATES = ((0.6, 0.5), (0.2, 0.3), (0.1, 0.2), (0.1, 0.2))
"""Prior mean and deviation of the base's share of time that is due to multiply-adds, activations, weights, launches."""
OWN = 0.4
"""Prior deviation of what a kind of block has of its own, relative to what its costs make likely."""
SPREAD = 0.015
"""Deviation, as a share of the ratio, by which it differs from one build and hour to the next, whatever its interval
says. Of a quiet machine; see `fitting.fit`."""
EXACT = 0.002
"""Deviation of the base's own ratio, which is 1."""

Works = Sequence[Work]
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Predicted:
    """`ratio` to the base's latency, and one standard `deviation` of what a measurement of it would show."""

    ratio: float
    deviation: float

    @property
    def added(self) -> float:
        """Added latency relative to the base: 0.17 is 17 %."""
        return self.ratio - 1


@dataclass(frozen=True)
class Calibrated:
    """A Gaussian over four rates, then two unknowns for each of `kinds`: fixed and moving.

    `whole`: costs of the base alone, of which costs are shares. `kinds`: of nodes with weights and multiply-adds;
    blocks that cost the same are of one kind. `mean` (n,), `covariance` (n, n). `spread`: as SPREAD. `evidence`: log of
    how likely all that was learnt was before.
    """

    whole: Cost
    kinds: tuple[Cost, ...]
    mean: Vector
    covariance: Vector
    spread: float = SPREAD
    evidence: float = 0.0

    def predict(self, works: Works) -> Predicted:
        """What a plan takes."""
        features = self.features(works)
        ratio = float(features @ self.mean)
        variance = float(features @ self.covariance @ features) + (self.spread * ratio) ** 2
        return Predicted(ratio, variance**0.5)

    def compare(self, works: Works, than: Works) -> Predicted:
        """The latency of one plan relative to another's: what is unknown of both alike makes it no less certain."""
        mine, other = self.features(works), self.features(than)
        whole = float(other @ self.mean)
        ratio = float(mine @ self.mean) / whole
        off = mine - ratio * other
        variance = float(off @ self.covariance @ off) / whole**2 + (self.spread * ratio) ** 2
        return Predicted(ratio, variance**0.5)

    def least_added(self, base: Works, works: Works, others: int) -> float:
        """What the fork of `works` adds at the least beside up to `others`, in plans that merge all they can.

        It brings its own streams and versions with it, whatever else is there. Only operators without multiply-adds
        depend on the others, whom it can but keep apart, or have packed: a rate below 0 makes it cheaper where it does
        that.
        """
        idle = [use.cost for work in base for use in work.uses if not use.cost.macs]
        apart = sum(
            min(0.0, float(_shares(cost, self.whole)[2:] @ self.mean[2 : len(RATES)])) for cost in idle
        )
        alone = self.predict(unpacked(works)).ratio - self.predict(base).ratio
        packing = [use for work in works for use in work.uses if not use.versions]
        cheaper = sum(float(np.minimum(self._rates_paid(use), 0).sum()) for use in packing)
        return alone + (others + 1) * (apart + cheaper)

    def learn(self, works: Works, ratio: float, deviation: float) -> Calibrated:
        """With one measurement more: a plan's `ratio` to the base, and its standard error."""
        features, noise = self.features(works), float(np.hypot(deviation, self.spread * ratio))
        off, variance = ratio - features @ self.mean, features @ self.covariance @ features + noise**2
        likely = -(off**2 / variance + np.log(2 * np.pi * variance)) / 2
        return replace(self._conditioned(features, ratio, noise), evidence=self.evidence + float(likely))

    def most_telling(self, candidates: Sequence[Works], among: Sequence[int] | None = None) -> int:
        """Index of the candidate, `among` these, whose measurement leaves least variance in all of them together.

        Variance is relative to what each takes, as errors are: else the dearest graphs would be all that counts.
        """
        features = np.stack([self.features(works) for works in candidates])
        common, ratios = features @ self.covariance @ features.T, features @ self.mean
        noise = self.spread * ratios  # if it comes out as it is predicted now
        gains = ((common / ratios) ** 2).sum(axis=1) / (np.diag(common) + noise**2)
        return max(range(len(candidates)) if among is None else among, key=lambda index: float(gains[index]))

    def features(self, works: Works) -> Vector:
        """How often each unknown is paid, (n,)."""
        found = np.zeros(len(self.mean))
        for use in (use for work in works for use in work.uses):
            found[: len(RATES)] += self._paid(use)
            if (place := self._places.get(use.cost)) is not None:
                found[place : place + 2] += use.versions, use.streams
        return found

    def _paid(self, use: Use) -> Vector:
        """How often each rate is."""
        return _shares(use.cost, self.whole) * (use.streams, use.streams, use.versions, use.runs)

    def _rates_paid(self, use: Use) -> Vector:
        return self._paid(use) * self.mean[: len(RATES)]

    @cached_property
    def _places(self) -> dict[Cost, int]:
        return {kind: len(RATES) + 2 * index for index, kind in enumerate(self.kinds)}

    def _conditioned(self, features: Vector, ratio: float, noise: float) -> Calibrated:
        """Bayes' rule for one observation with Gaussian error."""
        common = self.covariance @ features
        gain = common / (features @ common + noise**2)
        mean = self.mean + gain * (ratio - features @ self.mean)
        return replace(self, mean=mean, covariance=self.covariance - np.outer(gain, common))


def uncalibrated(base: Works) -> Calibrated:
    """What is plausible before anything was measured; `base`: the backbone's plan without tasks, which takes 1."""
    costs = [use.cost for work in base for use in work.uses]
    whole = sum(costs, Cost())
    kinds = tuple(dict.fromkeys(cost for cost in costs if cost.weights and cost.macs))
    means, deviations = np.array(RATES).T
    own = np.repeat([OWN * float(_shares(kind, whole) @ means) for kind in kinds], 2)
    model = Calibrated(
        whole,
        kinds,
        mean=np.concatenate([means, np.zeros_like(own)]),
        covariance=np.diag(np.concatenate([deviations, own]) ** 2),
    )
    return model._conditioned(model.features(base), 1.0, EXACT)


def _shares(cost: Cost, whole: Cost) -> Vector:
    return np.array(astuple(cost)) / np.maximum(astuple(whole), 1)
