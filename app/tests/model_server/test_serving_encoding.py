"""Answers are the JSON that MLflow writes, except that what JSON has no number for is null."""

from __future__ import annotations

import datetime
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.pyfunc.scoring_server import predictions_to_json
from model_server.worker import encoding

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec=None), max_size=5),
    st.binary(max_size=70),
    st.datetimes(),
    st.dates(),
    st.integers(-5, 5).map(np.int32),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(np.float32),
    st.floats(allow_nan=False, allow_infinity=False).map(np.float64),
    st.booleans().map(np.bool_),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3).map(
        lambda values: np.array(values, np.float32)
    ),
)
keys = st.text(max_size=3) | st.integers(-5, 5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)


class SubclassOfDataFrame(pd.DataFrame):
    pass


class SubclassOfSeries(pd.Series):
    pass


def upstream(value: Any) -> Any:
    output = io.StringIO()
    predictions_to_json(value, output)
    return json.loads(output.getvalue())


@given(values)
def test_equals_mlflow(value: Any) -> None:
    assert json.loads(encoding.predictions(value)) == upstream(value)


@pytest.mark.parametrize(
    "value",
    [
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.Series([0.5, 1.5], name="p"),
        np.array([[1, 2], [3, 4]], np.int8),
        np.array(["a", "b"]),
        np.float32(0.1),
        [{"scores": np.array([0.1], np.float32), "when": datetime.time(1, 2)}],
        np.ma.masked_array([1.5, 2.5], mask=[False, True]),
        np.rec.array([(1, "a"), (2, "b")], names="x,y"),
        SubclassOfDataFrame({"a": [1, 2]}),
        SubclassOfSeries([1, 2], name="s"),
        [np.ma.masked_array([1, 2], mask=[True, False])],
        {1: "a", 2.5: "b", None: "c", False: "d"},
    ],
)
def test_containers_equal_mlflow(value: Any) -> None:
    assert json.loads(encoding.predictions(value)) == upstream(value)


@pytest.mark.parametrize("levels", [200, 300, 900])
def test_nested_deep_equals_mlflow(levels: int) -> None:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    assert json.loads(encoding.predictions(value)) == upstream(value)


def test_what_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value += [value, value]
    with pytest.raises(RecursionError):
        encoding.predictions(value)


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, [np.float64("nan")], {"a": 2**70, "b": -math.inf}, [2**70, np.array([0.5, np.nan])]],
)
def test_what_is_no_number_in_json_is_null(value: Any) -> None:
    text = encoding.predictions(value).decode()
    assert "null" in text
    json.loads(text, parse_constant=pytest.fail)


def test_what_has_no_json_form_is_refused() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        encoding.predictions([object()])
