from __future__ import annotations

from dataclasses import replace

from codesearch.corpus import Function
from codesearch.split import digests, split, trainable
from hypothesis import given
from hypothesis import strategies as st

WORDS = ["read", "write", "parse", "file", "row", "table", "date", "socket", "header", "archive", "token", "queue"]


def function(query: str, body: int, docstring: int) -> Function:
    return Function("f", "f.py", 1, "f()", query, "f", "", "", docstring, hash(query) & 0xFFFF, body)


corpora = st.lists(
    st.builds(
        function,
        st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join),
        st.integers(0, 60),
        st.integers(0, 300),
    ),
    max_size=60,
)


@given(corpora, st.frozensets(st.integers(0, 300), max_size=20))
def test_no_tested_function_shares_a_text_with_anything_seen(
    functions: list[Function], pretrained: frozenset[int]
) -> None:
    parts = split(functions, pretrained)

    seen = digests([functions[i] for i in (*parts.train, *parts.validation)]) | pretrained
    for position in parts.test:
        assert seen.isdisjoint(functions[position].digests)
    held_out = [set(functions[i].digests) for i in (*parts.test, *parts.validation)]
    assert sum(map(len, held_out)) == len(set().union(*held_out))


@given(corpora)
def test_a_function_never_moves_from_test_to_training(functions: list[Function]) -> None:
    """However the corpus changes: the champion's test functions are asked again years later."""
    tested = {functions[i].digests for i in split(functions, frozenset()).test}
    for changed in (functions[::2], functions * 2, functions[:10]):
        trained = {changed[i].digests for i in split(changed, frozenset()).train}
        assert not tested & trained


def test_about_a_fifth_is_tested_and_a_tenth_validates(functions: list[Function]) -> None:
    parts = split(functions, frozenset())
    assert 25 <= len(parts.test) <= 60
    assert 10 <= len(parts.validation) <= 35
    assert len(parts.train) >= 130


def test_training_takes_each_text_once_and_no_empty_one(functions: list[Function]) -> None:
    nameless = replace(functions[1], query="See.", query_digest=1)
    assert trainable([functions[0], functions[0], nameless, functions[2]], range(4)) == [0, 3]
