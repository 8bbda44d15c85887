"""Counts inputs and outputs in the bins of the model's training profile, so that drift is a PromQL expression.

The training run stores the profile in the model's metadata under ``drift_profile``::

    {"text_length": {"edges": [20, 40, 80], "expected": [0.2, 0.5, 0.2, 0.1]}, …}

``edges`` are the upper bounds of all bins but the last; ``expected`` is the share of the training data in each.
Known features: ``text_length`` (characters of each string), ``top_score`` (``score`` of the first record of each
answer), ``input:<column>`` and ``output`` (numbers). A model can add its own, such as a rate of unknown tokens, by
a method ``observe(model_input, predictions)`` of its Python model that returns ``{feature: [value, …]}``.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from model_server.common.metrics import DRIFT, DRIFT_EXPECTED

_logger = logging.getLogger(__name__)

Observer = Callable[[Any, Any], Mapping[str, Iterable[float]]]

_MOST_ROWS = 256
"""Rows of one request that are looked at: enough for a distribution, and bounds the cost."""


class _Feature:
    """One feature's bins and their counters."""

    def __init__(self, name: str, version: str, edges: list[float], expected: list[float]) -> None:
        if sorted(edges) != edges or len(expected) != len(edges) + 1:
            raise ValueError(f"{name}: edges must rise, and expected must have one value more than edges")
        self.edges = edges
        labels = [f"{edge:g}" for edge in edges] + ["+Inf"]
        self._counters = [DRIFT.labels(version, name, label) for label in labels]
        self._expected = dict(zip(labels, expected, strict=True))
        self._uncounted: Counter[int] = Counter()
        self._name = name
        self._version = version

    def announce(self) -> None:
        for label, share in self._expected.items():
            DRIFT_EXPECTED.labels(self._version, self._name, label).set(share)

    def add(self, values: Iterable[float]) -> None:
        self._uncounted.update(bisect_left(self.edges, value) for value in values)

    def count(self) -> None:
        for bin_, number in self._uncounted.items():
            self._counters[bin_].inc(number)
        self._uncounted.clear()


class DriftProfile:
    """The features of one model version that are counted; none for a model without a profile."""

    def __init__(self, features: dict[str, _Feature]) -> None:
        self._features = features

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], version: str) -> DriftProfile:
        """Read the profile; one that cannot be read is logged and counts nothing."""
        try:
            profile = metadata.get("drift_profile") or {}
            return cls(
                {
                    name: _Feature(name, version, list(map(float, bins["edges"])), list(map(float, bins["expected"])))
                    for name, bins in profile.items()
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            _logger.warning("the model's drift profile cannot be read", extra={"reason": str(error)})
            return cls({})

    def announce(self) -> None:
        """Publish the expected shares; call it in each worker."""
        for feature in self._features.values():
            feature.announce()

    def observe(self, answered: Sequence[tuple[Any, Any]], observer: Observer | None) -> None:
        """Count requests. Never raises: what cannot be counted is not worth a request.

        Args:
            answered: what the model was given and what it returned, for each request.
            observer: the model's own.
        """
        if not self._features:
            return
        for data, answer in answered:
            try:
                seen = _observations(self._features, data, answer)
                if observer is not None:
                    seen.update(observer(data, answer))
                for name, values in seen.items():
                    if name in self._features:
                        self._features[name].add(values)
            except Exception:
                _logger.debug("a request could not be counted for drift", exc_info=True)
        for feature in self._features.values():
            feature.count()


def _observations(names: Iterable[str], data: Any, answer: Any) -> dict[str, Iterable[float]]:
    seen: dict[str, Iterable[float]] = {}
    for name in names:
        if name == "text_length":
            seen[name] = [len(text) for text in _strings(data)]
        elif name == "top_score":
            seen[name] = [float(rows[0]["score"]) for rows in _head(answer) if rows]
        elif name == "output":
            seen[name] = [float(value) for value in _head(answer)]
        elif name.startswith("input:"):
            seen[name] = [float(value) for value in _head(data[name.removeprefix("input:")])]
    return seen


def _strings(data: Any) -> list[str]:
    if isinstance(data, list):
        return [item for item in data[:_MOST_ROWS] if isinstance(item, str)]
    if hasattr(data, "iloc"):
        return _strings(data.iloc[:_MOST_ROWS, 0].tolist())
    return _strings(data.ravel().tolist()) if hasattr(data, "ravel") else []


def _head(values: Any) -> list[Any]:
    rows = values[:_MOST_ROWS]
    return rows.tolist() if hasattr(rows, "tolist") else list(rows)
