"""How well a ranking puts the right function first, and how sure we are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codesearch.towers import Floats

_BLOCK = 64
_RESAMPLES = 2000
_DEPTHS = (1, 5, 10)

Ranks = NDArray[np.float64]
Scorer = Callable[[list[str]], Floats]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ranks(scorer: Scorer, queries: Sequence[str], targets: Sequence[int]) -> Ranks:
    """Return the rank of each query's function among the whole corpus, from 1; equals share the mean of their ranks.

    Args:
        scorer: gives the score of every function for some queries, (queries, functions).
        queries: what is asked for.
        targets: for each query, the position of its function.
    """
    found = np.empty(len(queries))
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = scorer(list(queries[part]))
        wanted = scores[np.arange(len(scores)), targets[part]][:, None]
        found[part] = 1 + (scores > wanted).sum(axis=1) + ((scores == wanted).sum(axis=1) - 1) / 2
    return found


def reciprocal(found: Ranks) -> Ranks:
    """Return one over each rank: their mean is the MRR."""
    return 1 / found


def _resampled_means(values: Ranks) -> Ranks:
    # One fixed seed: the same samples for every system, and the same figures for the same ranks.
    samples = np.random.default_rng(0).integers(0, len(values), (_RESAMPLES, len(values)))
    means: Ranks = values[samples].mean(axis=1)
    return means


def _interval(value: float, resampled: Ranks) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def mean_interval(values: Ranks) -> Interval:
    """Return the mean with its interval."""
    return _interval(float(values.mean()), _resampled_means(values))


def ratio_interval(values: Ranks, baseline: Ranks) -> Interval:
    """Return the ratio of two means over the same queries, with the interval of a paired bootstrap."""
    below = _resampled_means(baseline)
    resampled = _resampled_means(values) / np.maximum(below, 1e-12)
    return _interval(float(values.mean() / max(float(baseline.mean()), 1e-12)), resampled)


def quality(found: Ranks) -> dict[str, Interval]:
    """Return ``mrr``, ``recall_at_1``, ``recall_at_5`` and ``recall_at_10``."""
    figures = {"mrr": mean_interval(reciprocal(found))}
    for depth in _DEPTHS:
        figures[f"recall_at_{depth}"] = mean_interval((found <= depth).astype(float))
    return figures
