"""Whatever way the input takes, the model is given what MLflow's own scoring server would have given it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from model_server.worker import encoding, protocol
from model_server.worker.errors import RequestError
from model_server.worker.model import ServedModel
from serving_harness import SCALARS, SIGNATURES, SIGNATURES_OVER_A_HINT

KINDS = [*SIGNATURES, "a type hint", *SIGNATURES_OVER_A_HINT]
PROPERTY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**64), 2**65),
    st.sampled_from([0, 1, -1, 0.0, 1e300, 2**31, 2**53, 2**63]),
)
texts = st.text(max_size=5) | st.sampled_from(["", "a\0", "nan", "1", "1.5", "2021-01-01", "YQ=="])
odd = st.none() | st.booleans() | numbers | texts
plain: dict[str, st.SearchStrategy[Any]] = {
    "string": texts,
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "double": st.floats(allow_nan=False, allow_infinity=False),
}
names = st.sampled_from(["query", "x", "a", "b", "c", "d", "when", "what", *SCALARS])


@st.composite
def columns(draw: st.DrawFn) -> dict[str, list[Any]]:
    chosen = draw(
        st.sampled_from([["query"], ["x"], list("abcd"), ["a", "b"], SCALARS, SCALARS[::-1], ["b", "a", "z"]])
    )
    rows = draw(st.integers(0, 3))
    mostly_plain = draw(st.integers(0, 3)) > 0
    kinds = {"query": "string", "b": "double"}
    return {
        name: draw(
            st.lists(
                plain[kinds.get(name, name if name in plain else "double")] if mostly_plain else odd,
                min_size=rows,
                max_size=rows,
            )
        )
        for name in chosen
    }


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.integers(0, 8))
    table = draw(columns())
    records = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    rows = [list(record.values()) for record in records]
    split: dict[str, Any] = {"columns": list(table), "data": rows}
    if draw(st.booleans()):
        split["index"] = draw(st.sampled_from([list(range(len(rows))), [1] * len(rows), [0.0] * len(rows), ["r"]]))
    if draw(st.integers(0, 4)) == 0:
        del split["columns"]
    tensors = st.lists(st.lists(numbers, min_size=3, max_size=3), max_size=3) | st.lists(
        st.lists(numbers, max_size=3), max_size=3
    )
    body: dict[str, Any] = [
        {"dataframe_split": split},
        {"dataframe_records": records},
        {"inputs": table},
        {"inputs": next(iter(table.values()))},
        {"instances": next(iter(table.values()))},
        {"instances": records},
        {"inputs": draw(st.lists(texts, max_size=3))},
        {draw(st.sampled_from(["inputs", "instances"])): draw(tensors)},
        {"inputs": {"a": draw(tensors), "b": draw(st.lists(st.integers(0, 9), max_size=3))}},
    ][shape]
    if draw(st.integers(0, 2)) == 0:
        body["params"] = draw(
            st.dictionaries(st.sampled_from(["top_k", "threshold", "other"]), odd, max_size=2) | st.none() | texts
        )
    return body


def ours(model: ServedModel, body: bytes) -> tuple[str, Any]:
    try:
        invocation = model.read(protocol.JSON, body)
        return invocation.path, json.loads(encoding.predictions(invocation.call()))
    except RequestError as error:
        return "refused", error.status


def upstream(model: ServedModel, body: bytes) -> tuple[str, Any]:
    try:
        answer = scoring_server.invocations(
            body, "application/json", model.pyfunc, model.pyfunc.metadata.get_input_schema()
        )
    except MlflowException as error:
        return "refused", error.get_http_status_code()
    return "answered", json.loads(answer.response)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_equals_the_scoring_server(kind: str, echo_models: dict[str, ServedModel]) -> None:
    model = echo_models[kind]

    @PROPERTY
    @given(bodies())
    def check(body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        path, answer = ours(model, text)
        reference, expected = upstream(model, text)
        if reference == "refused":
            assert path == "refused", (answer, expected)
            assert answer == 400
        else:
            assert answer == expected, path

    check()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("one string", {"inputs": ["a", "b"]}),
        ("one string", {"instances": ["a"]}),
        ("one string", {"dataframe_split": {"data": [["a"]]}}),
        ("one string with params", {"inputs": ["a"], "params": {"top_k": 3}}),
        ("one named string", {"inputs": ["a"]}),
        ("one named string", {"inputs": {"query": ["a"]}}),
        ("one named string", {"dataframe_records": [{"query": "a"}]}),
        ("four doubles", {"dataframe_split": {"columns": list("abcd"), "index": [0], "data": [[1.0, 2.0, 3.0, 4.5]]}}),
        ("four doubles", {"dataframe_records": [dict.fromkeys("abcd", 1.5)]}),
        ("four doubles", {"inputs": {name: [1.5, 2.5] for name in "abcd"}}),
        ("every scalar", {"dataframe_records": [dict(zip(SCALARS, ["a", True, 1, 2, 0.5, 1.5], strict=True))]}),
        ("a tensor", {"inputs": [[1.0, 2.0, 3.0]]}),
        ("named tensors", {"inputs": {"a": [[1.0, 2.0]], "b": [1]}}),
        ("a type hint", {"inputs": ["a"], "params": {"top_k": 3}}),
        ("one string over a hint", {"inputs": ["a", "b"], "params": {"top_k": 3}}),
        ("one string over a hint", {"instances": ["a"]}),
        ("one string over a hint", {"dataframe_split": {"data": [["a"]]}}),
        ("one named string over a hint", {"dataframe_records": [{"query": "a"}]}),
    ],
)
def test_plain_input_takes_the_fast_path(kind: str, body: dict[str, Any], echo_models: dict[str, ServedModel]) -> None:
    text = json.dumps(body).encode()
    path, answer = ours(echo_models[kind], text)
    assert path == "fast"
    assert ("answered", answer) == upstream(echo_models[kind], text)
