from __future__ import annotations

import math

import numpy as np
import pytest
from codesearch.corpus import Function
from codesearch.lexical import BASELINE, WEIGHTED, Bm25


def function(name: str, body: str, place: str = "") -> Function:
    return Function(name, "f.py", 1, f"{name}()", "", name, place, body, 0, 0, 0)


FUNCTIONS = [function("read", "file file row"), function("write", "file"), function("send", "socket")]


def test_scores_are_those_of_the_formula() -> None:
    scores = Bm25(FUNCTIONS, BASELINE).scores(["file row file"])

    def term(count: int, functions_with_it: int, length: int) -> float:
        rarity = math.log(1 + (3 - functions_with_it + 0.5) / (functions_with_it + 0.5))
        return rarity * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * length / (8 / 3)))

    expected = [[2 * term(2, 2, 4) + term(1, 1, 4), 2 * term(1, 2, 2), 0]]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_no_word_adds_more_than_its_bound() -> None:
    for settings in (BASELINE, WEIGHTED):
        bm25 = Bm25([function("read", "file " * 1000), *FUNCTIONS], settings, ["unused"])
        assert (bm25.weights.max(axis=0).toarray() <= bm25.bounds).all()


def test_a_word_of_the_name_weighs_more_than_one_of_the_body() -> None:
    functions = [function("read", "file socket"), function("file", "read socket")]
    assert Bm25(functions, BASELINE).scores(["read"])[0] == pytest.approx([0.1823216] * 2, rel=1e-4)
    by_name = Bm25(functions, WEIGHTED).scores(["read"])[0]
    assert by_name[0] > by_name[1]


def test_words_asked_for_come_first() -> None:
    bm25 = Bm25(FUNCTIONS, BASELINE, ["socket", "unused"])
    assert list(bm25.words)[:2] == ["socket", "unused"]
    assert bm25.scores(["unused"]).tolist() == [[0, 0, 0]]
