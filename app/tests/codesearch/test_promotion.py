from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codesearch.corpus import Function
from codesearch.evaluation import ranks
from codesearch.index import write_index
from codesearch.promotion import HeldOut, compare
from codesearch.searcher import Searcher
from codesearch.split import digests
from codesearch.towers import TwoTowers

WEIGHT = 1.0


@pytest.fixture(scope="module")
def towers(functions: list[Function]) -> TwoTowers:
    return TwoTowers.empty().extended(functions, seed=0)


@pytest.fixture(scope="module")
def own_ranks(functions: list[Function], towers: TwoTowers, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    directory = tmp_path_factory.mktemp("index")
    write_index(directory, functions, towers, WEIGHT)
    found = ranks(Searcher(directory).scores, [f.query for f in functions], range(len(functions)))
    return [float(rank) for rank in found]


def split_with(functions: list[Function], champion_ranks: list[float]) -> HeldOut:
    return HeldOut(functions, range(len(functions)), champion_ranks)


def test_a_tie_never_promotes(functions: list[Function], towers: TwoTowers, own_ranks: list[float]) -> None:
    decision = compare("champion 3", split_with(functions, own_ranks), towers, WEIGHT, frozenset())
    assert not decision.promote
    assert "does not beat champion 3 by more than noise" in decision.reason
    assert "+0.0000" in decision.reason


def test_a_clear_win_promotes(functions: list[Function], towers: TwoTowers, own_ranks: list[float]) -> None:
    decision = compare(
        "champion 3", split_with(functions, [rank + 1 for rank in own_ranks]), towers, WEIGHT, frozenset()
    )
    assert decision.promote
    assert decision.reason.startswith("beats champion 3: MRR 0.")


def test_a_win_within_noise_does_not_promote(
    functions: list[Function], towers: TwoTowers, own_ranks: list[float]
) -> None:
    best = int(np.argmin(own_ranks))
    luckier = [rank + 1 if number == best else rank for number, rank in enumerate(own_ranks)]
    assert not compare("champion 3", split_with(functions, luckier), towers, WEIGHT, frozenset()).promote


def test_a_worse_model_does_not_promote(functions: list[Function], towers: TwoTowers) -> None:
    assert not compare("champion 3", split_with(functions, [1.0] * len(functions)), towers, WEIGHT, frozenset()).promote


def test_what_the_new_model_learned_from_is_not_asked(functions: list[Function], towers: TwoTowers) -> None:
    # The champion is bad at the first hundred only, and the new model learned just those.
    champion = [1000.0] * 100 + [1.0] * (len(functions) - 100)
    decision = compare(
        "champion 3", split_with(functions, champion), towers, WEIGHT, frozenset(digests(functions[:100]))
    )
    assert not decision.promote
    assert f"{len(functions) - 100} test functions" in decision.reason


def test_too_few_questions_compare_nothing(functions: list[Function], towers: TwoTowers) -> None:
    champion = split_with(functions, [1000.0] * len(functions))
    decision = compare("champion 3", champion, towers, WEIGHT, frozenset(digests(functions[29:])))
    assert not decision.promote
    assert decision.reason == "only 29 of champion 3's test functions are new to this model: no comparison"


def test_a_split_is_read_as_it_was_written(functions: list[Function], tmp_path: Path) -> None:
    split = HeldOut(functions, [3, 5], [1.0, 2.5])
    contents = []
    for name in ("one", "two"):
        split.save(tmp_path / name)
        contents.append((tmp_path / name).read_bytes())
    assert HeldOut.load(tmp_path / "one") == split
    assert contents[0] == contents[1]
