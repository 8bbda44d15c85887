from __future__ import annotations

import numpy as np
import pytest
from codesearch.evaluation import Interval, mean_interval, quality, ranks, ratio_interval
from codesearch.towers import Floats
from hypothesis import given
from hypothesis import strategies as st


def scorer(rows: list[list[float]]) -> object:
    table = np.array(rows, np.float32)

    def score(queries: list[str]) -> Floats:
        return table[[int(query) for query in queries]]

    return score


def test_a_rank_counts_what_scores_higher_and_shares_among_equals() -> None:
    table = scorer([[3, 2, 1], [0, 0, 0], [1, 2, 2]])
    assert ranks(table, ["0", "1", "2"], [1, 0, 2]).tolist() == [2, 2, 1.5]  # type: ignore[arg-type]


def test_many_queries_are_ranked_like_one() -> None:
    rows = np.random.default_rng(0).random((150, 20)).tolist()
    targets = [number % 20 for number in range(150)]
    together = ranks(scorer(rows), [str(n) for n in range(150)], targets)  # type: ignore[arg-type]
    alone = [ranks(scorer(rows), [str(n)], [targets[n]])[0] for n in range(150)]  # type: ignore[arg-type]
    assert together.tolist() == alone


def test_quality_is_mrr_and_recall() -> None:
    figures = quality(np.array([1.0, 2.0, 10.0, 100.0]))
    assert {name: figure.value for name, figure in figures.items()} == {
        "mrr": pytest.approx((1 + 0.5 + 0.1 + 0.01) / 4),
        "recall_at_1": 0.25,
        "recall_at_5": 0.5,
        "recall_at_10": 0.75,
    }


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=50))
def test_an_interval_holds_its_value_and_is_the_same_each_time(values: list[float]) -> None:
    interval = mean_interval(np.array(values))
    assert interval == mean_interval(np.array(values))
    assert interval.low <= interval.high
    assert min(values) - 1e-9 <= interval.low
    assert interval.high <= max(values) + 1e-9


def test_more_values_make_a_narrower_interval() -> None:
    values = np.random.default_rng(0).random(2000)
    few, many = mean_interval(values[:100]), mean_interval(values)
    assert many.high - many.low < (few.high - few.low) / 2


def test_a_ratio_is_paired() -> None:
    values = np.random.default_rng(0).random(200)
    assert ratio_interval(values * 1.2, values) == Interval(*[pytest.approx(1.2)] * 3)  # type: ignore[arg-type]


def test_an_interval_is_written_with_its_ends() -> None:
    assert str(Interval(0.5, 0.45, 0.551)) == "0.500 [0.450, 0.551]"
