from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from codesearch.corpus import Function
from codesearch.index import write_index
from codesearch.searcher import Searcher, stem, subtokens
from codesearch.towers import TwoTowers
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("readCSVFile", ["read", "csv", "file"]),
        ("read_csv_file", ["read", "csv", "file"]),
        ("Read a CSV file", ["read", "csv", "file"]),
        ("HTTPServer2", ["http", "server"]),
        ("parsing parsed parses", ["pars", "pars", "pars"]),
        ("sha256 x utf8", ["sha", "256", "utf"]),
        ("Größe_der_Datei", ["größ", "der", "datei"]),
        ("", []),
        ("!? ,", []),
    ],
)
def test_identifiers_and_english_become_the_same_subtokens(text: str, expected: list[str]) -> None:
    assert subtokens(text) == expected


def test_the_stem_of_a_short_word_is_the_word() -> None:
    assert [stem(word) for word in ("is", "bus", "pass", "red", "ring", "use")] == [
        "is",
        "bus",
        "pass",
        "red",
        "ring",
        "use",
    ]


@given(st.text())
def test_any_text_has_subtokens_without_space_or_capitals(text: str) -> None:
    for word in subtokens(text):
        assert word
        assert not any(character.isspace() for character in word)
        assert word == word.lower()


@pytest.fixture(scope="module")
def searcher(functions: list[Function], tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    directory = tmp_path_factory.mktemp("index")
    write_index(directory, functions, TwoTowers.empty().extended(functions, seed=0), 1.0)
    return Searcher(directory)


def test_a_search_returns_records_best_first(searcher: Searcher) -> None:
    (records,) = searcher.search(["remove directory"], top_k=3)

    assert records[0] == {
        "function": "remove_directory",
        "file": "directorys.py",
        "line": records[0]["line"],
        "signature": "remove_directory(directory, options=None)",
        "score": records[0]["score"],
    }
    scores = [record["score"] for record in records]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_the_line_is_that_of_def(searcher: Searcher, corpus_root: Path) -> None:
    ((record,),) = searcher.search(["remove directory"], top_k=1)
    assert isinstance(record["line"], int)
    assert (
        (corpus_root / str(record["file"]))
        .read_text()
        .splitlines()[record["line"] - 1]
        .startswith("def remove_directory")
    )


def test_more_answers_than_functions_are_all_functions(searcher: Searcher) -> None:
    assert len(searcher.search(["remove directory"], top_k=10_000)[0]) == len(searcher)


@pytest.mark.parametrize("query", ["", "?!", "xyzzy", "a b c"])
def test_a_query_without_a_known_word_finds_nothing(searcher: Searcher, query: str) -> None:
    assert searcher.search([query]) == [[]]
    assert searcher.unknown_rate(query) == 1.0


def test_no_queries_no_answers(searcher: Searcher) -> None:
    assert searcher.search([]) == []


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_below_one_is_refused(searcher: Searcher, top_k: int) -> None:
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        searcher.search(["remove"], top_k=top_k)


def test_the_rate_of_unknown_words_counts_words(searcher: Searcher) -> None:
    assert searcher.unknown_rate("remove xyzzy directory plugh") == 0.5


@given(
    st.lists(
        st.sampled_from(["remove directory", "look up days", "", "xyzzy", "transmit pictures csv csv"]), max_size=40
    )
)
def test_a_query_is_answered_alike_alone_and_among_others(searcher: Searcher, queries: list[str]) -> None:
    together = searcher.search(queries, top_k=4)
    for query, records in zip(queries, together, strict=True):
        (alone,) = searcher.search([query], top_k=4)
        assert [record["function"] for record in records] == [record["function"] for record in alone]
        assert [r["score"] for r in records] == pytest.approx([r["score"] for r in alone], abs=2e-4)


def test_the_lexical_weight_scales_the_lexical_half(searcher: Searcher) -> None:
    queries = ["remove directory", "cut into pieces web addresses"]
    scores = {}
    for weight in (0.0, 1.0, 3.0):
        searcher.lexical_weight = weight
        scores[weight] = searcher.scores(queries)
    searcher.lexical_weight = 1.0

    np.testing.assert_allclose(scores[3.0] - scores[0.0], 3 * (scores[1.0] - scores[0.0]), atol=1e-5)
    assert (scores[1.0] - scores[0.0]).max() <= 1 + 1e-5
