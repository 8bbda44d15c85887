"""The V2 protocol in detail, asked of models of every kind of signature: what MLflow's protocol gives, it gives."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pandas as pd
import pytest
from model_server.worker import v2
from model_server.worker.errors import NotAcceptedError, RequestError, SchemaError, TooLargeError
from model_server.worker.model import Invocation, ServedModel
from model_server.worker.protocol import JSON


def tensor(name: str, datatype: str, shape: list[Any], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def by_v2(model: ServedModel, *inputs: dict[str, Any], **more: Any) -> Invocation:
    return model.read_v2(json.dumps({"inputs": inputs, **more}).encode(), None)


def by_mlflow(model: ServedModel, **body: Any) -> Invocation:
    return model.read(JSON, json.dumps(body).encode())


def in_bytes(model: ServedModel, head: dict[str, Any], rest: bytes) -> Invocation:
    text = json.dumps(head).encode()
    return model.read_v2(text + rest, str(len(text)))


# --- the model is given what MLflow's protocol gives it --------------------------------------------------------------

A_DOUBLE = {"name": "x", "datatype": "FP64", "shape": [2], "data": [1.5, -2.0]}
SAME: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "a column": ("one named double", [A_DOUBLE], {"inputs": {"x": [1.5, -2.0]}}),
    "a column of shape [n, 1]": (
        "one named double",
        [{**A_DOUBLE, "shape": [2, 1], "data": [[1.5], [-2.0]]}],
        {"inputs": {"x": [1.5, -2.0]}},
    ),
    "a column of shape [n, 1] in one list": (
        "one named double",
        [{**A_DOUBLE, "shape": [2, 1]}],
        {"inputs": {"x": [1.5, -2.0]}},
    ),
    "whole numbers for FP64": (
        "one named double",
        [{**A_DOUBLE, "data": [1, 2]}],
        {"inputs": {"x": [1.0, 2.0]}},
    ),
    "a smaller type": (
        "one named double",
        [tensor("x", "INT8", [2], [1, 2])],
        {"inputs": {"x": [1.0, 2.0]}},
    ),
    "texts": ("one named string", [tensor("query", "BYTES", [2], ["a", "b\0"])], {"inputs": {"query": ["a", "b\0"]}}),
    "a column without a name": ("one string", [tensor("input-0", "BYTES", [2], ["a", "b"])], {"inputs": ["a", "b"]}),
    "two columns without names": (
        "two unnamed doubles",
        [tensor("input-1", "FP64", [2], [3.0, 4.0]), tensor("input-0", "FP64", [2], [1.0, 2.0])],
        {"dataframe_split": {"data": [[1.0, 3.0], [2.0, 4.0]]}},
    ),
    "every scalar": (
        "every scalar",
        [
            tensor("string", "BYTES", [1], ["a"]),
            tensor("boolean", "BOOL", [1], [True]),
            tensor("integer", "INT32", [1], [-1]),
            tensor("long", "INT64", [1], [2**40]),
            tensor("float", "FP32", [1], [0.5]),
            tensor("double", "FP64", [1], [0.1]),
        ],
        {
            "dataframe_records": [
                {"string": "a", "boolean": True, "integer": -1, "long": 2**40, "float": 0.5, "double": 0.1}
            ]
        },
    ),
    "an optional column left out": (
        "an optional column",
        [tensor("a", "FP64", [1], [1.5])],
        {"inputs": {"a": [1.5]}},
    ),
    "a date, and bytes": (
        "datetime and binary",
        [tensor("when", "BYTES", [1], ["2021-01-01T00:00:00"]), tensor("what", "BYTES", [1], ["abc"])],
        {"dataframe_split": {"columns": ["when", "what"], "data": [["2021-01-01T00:00:00", "YWJj"]]}},
    ),
    "a tensor": (
        "a tensor",
        [tensor("input-0", "FP64", [2, 3], [1, 2, 3, 4, 5, 6])],
        {"inputs": [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]},
    ),
    "named tensors": (
        "named tensors",
        [tensor("b", "INT64", [1], [7]), tensor("a", "FP32", [1, 2], [[0.5, 1.5]])],
        {"inputs": {"a": [[0.5, 1.5]], "b": [7]}},
    ),
    "a tensor for a model without a signature": (
        "no signature",
        [tensor("any", "INT64", [2, 2], [1, 2, 3, 4])],
        {"inputs": [[1, 2], [3, 4]]},
    ),
    "tensors for a model without a signature": (
        "no signature",
        [tensor("a", "INT64", [2], [1, 2]), tensor("b", "BYTES", [1], ["x"])],
        {"inputs": {"a": [1, 2], "b": ["x"]}},
    ),
    "a type hint": ("a type hint", [tensor("input-0", "BYTES", [2], ["a", "b"])], {"inputs": ["a", "b"]}),
}


@pytest.mark.parametrize("case", SAME)
def test_the_model_is_given_what_mlflows_protocol_gives_it(echo_models: dict[str, ServedModel], case: str) -> None:
    name, inputs, body = SAME[case]
    model = echo_models[name]
    asked, expected = by_v2(model, *inputs), by_mlflow(model, **body)
    assert (asked.rows, asked.path) == (expected.rows, expected.path)
    assert asked.call() == expected.call()


@pytest.mark.parametrize("datatype", v2.DTYPES)
def test_every_datatype_as_bytes_is_what_it_is_in_json(echo_models: dict[str, ServedModel], datatype: str) -> None:
    model = echo_models["no signature"]
    array = np.array([0, 1, 1], v2.DTYPES[datatype])
    head = {"name": "x", "datatype": datatype, "shape": [3], "parameters": {"binary_data_size": array.nbytes}}
    asked = in_bytes(model, {"inputs": [head]}, array.tobytes())
    assert asked.call() == by_v2(model, tensor("x", datatype, [3], array.tolist())).call()


def test_texts_and_bytes_after_their_lengths(echo_models: dict[str, ServedModel]) -> None:
    rest = b"".join(struct.pack("<I", len(value)) + value for value in (b"2021-01-01", b"\0\xff"))
    head = {
        "inputs": [
            {"name": "when", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 14}},
            {"name": "what", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}},
        ]
    }
    assert "b'\\x00\\xff'" in in_bytes(echo_models["datetime and binary"], head, rest).call()[0]["rows"][1]


def test_parameters_are_mlflows_params_and_others_are_nothing_to_the_model(
    echo_models: dict[str, ServedModel],
) -> None:
    model = echo_models["four doubles"]
    columns = [tensor(name, "FP64", [1], [0.5]) for name in "abcd"]
    asked = by_v2(model, *columns, parameters={"top_k": 7, "binary_data_output": True, "priority": 1})
    assert "'top_k': 7" in asked.call()[1]
    assert "priority" not in asked.call()[1]
    with pytest.raises(SchemaError, match="top_k"):
        by_v2(model, *columns, parameters={"top_k": "many"})


# --- what is refused -------------------------------------------------------------------------------------------------

SHAPE_LIES: dict[str, Any] = {
    "negative": [-2],
    "zero": [0],
    "none": [],
    "no list": 2,
    "a boolean": [True],
    "a fraction": [2.0],
    "NaN": [float("nan")],
    "infinity": [float("inf")],
    "too small": [1],
    "too large": [3],
    "huge": [2**62, 2**62],
    "beyond 64 bits": [2**64],
    "many": [2] + [1] * 100,
    "very many": [1] * 10_000,
    "a column of columns": [1, 2],
}
DATA_LIES: dict[str, tuple[str, list[int], Any]] = {
    "ragged": ("FP64", [2, 2], [[1.0, 2.0], [3.0]]),
    "ragged within": ("FP64", [2, 1], [[1.0], 2.0]),
    "deeper than its shape": ("FP64", [2], [[1.0], [2.0]]),
    "null": ("FP64", [2], [1.0, None]),
    "text for numbers": ("FP64", [1], ["1"]),
    "objects": ("FP64", [1], [{}]),
    "an object": ("FP64", [1], {"0": 1.0}),
    "an integer that no float holds": ("FP64", [1], [10**400]),
    "an integer out of range": ("INT8", [1], [128]),
    "a negative one for an unsigned": ("UINT8", [1], [-1]),
    "NaN for an integer": ("INT64", [1], [float("nan")]),
    "a fraction for an integer": ("INT64", [1], [1.5]),
    "a boolean for an integer": ("INT64", [1], [True]),
    "a number for a boolean": ("BOOL", [1], [1]),
    "a number for a text": ("BYTES", [1], [1]),
    "an unknown datatype": ("FP128", [1], [1.0]),
}


@pytest.mark.parametrize("lie", SHAPE_LIES)
def test_a_shape_that_lies_is_refused(echo_models: dict[str, ServedModel], lie: str) -> None:
    with pytest.raises(RequestError) as refused:
        by_v2(echo_models["one named double"], {**A_DOUBLE, "shape": SHAPE_LIES[lie]})
    assert refused.value.status == 400


@pytest.mark.parametrize("lie", DATA_LIES)
def test_data_that_are_not_what_they_are_said_to_be_are_refused(echo_models: dict[str, ServedModel], lie: str) -> None:
    with pytest.raises(RequestError) as refused:
        by_v2(echo_models["no signature"], tensor("x", *DATA_LIES[lie]))
    assert refused.value.status == 400


def test_not_a_number_is_a_value_of_a_float(echo_models: dict[str, ServedModel]) -> None:
    asked = by_v2(echo_models["one named double"], {**A_DOUBLE, "data": [float("nan"), float("inf")]})
    assert asked.call()[0]["rows"] == [["nan", "inf"]]


BODIES: dict[str, Any] = {
    "no dictionary": [],
    "no inputs": {},
    "no input": {"inputs": []},
    "inputs of another protocol": {"inputs": {"x": [1.0]}},
    "an input that is none": {"inputs": [1]},
    "no name": {"inputs": [{"datatype": "FP64", "shape": [1], "data": [1.0]}]},
    "a name twice": {"inputs": [A_DOUBLE, A_DOUBLE]},
    "no data": {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1]}]},
    "data twice": {"inputs": [{**A_DOUBLE, "parameters": {"binary_data_size": 16}}]},
    "another name": {"inputs": [{**A_DOUBLE, "name": "y"}]},
    "one more": {"inputs": [A_DOUBLE, {**A_DOUBLE, "name": "y"}]},
    "another datatype": {"inputs": [tensor("x", "BYTES", [1], ["1"])]},
    "an id that is none": {"id": 1, "inputs": [A_DOUBLE]},
    "parameters that are none": {"parameters": [], "inputs": [A_DOUBLE]},
    "outputs that are none": {"outputs": [1], "inputs": [A_DOUBLE]},
}


@pytest.mark.parametrize("body", BODIES)
def test_a_body_that_is_not_of_the_protocol_is_refused(echo_models: dict[str, ServedModel], body: str) -> None:
    with pytest.raises(RequestError) as refused:
        echo_models["one named double"].read_v2(json.dumps(BODIES[body]).encode(), None)
    assert refused.value.status == 400


@pytest.mark.parametrize("length", ["-1", "1e3", "", "999999", "9" * 5_000, "٣", "1,2"])
def test_a_length_of_the_json_that_lies_is_refused(echo_models: dict[str, ServedModel], length: str) -> None:
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        echo_models["one named double"].read_v2(json.dumps({"inputs": [A_DOUBLE]}).encode(), length)


@pytest.mark.parametrize(
    ("sizes", "rest"),
    [([8], 16), ([16], 8), ([-8], 8), ([0], 0), ([8.0], 8), ([True], 8), ([2**70], 8), ([8, 8], 8), ([16, 16], 24)],
)
def test_sizes_of_bytes_that_lie_or_overlap_are_refused(
    echo_models: dict[str, ServedModel], sizes: list[Any], rest: int
) -> None:
    inputs = [
        {"name": f"x{number}", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": size}}
        for number, size in enumerate(sizes)
    ]
    with pytest.raises(RequestError) as refused:
        in_bytes(echo_models["no signature"], {"inputs": inputs}, b"\0" * rest)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "rest",
    [b"", b"\1", b"\1\0\0\0", b"\2\0\0\0a", b"\xff\xff\xff\xffa", b"\1\0\0\0ab", b"\1\0\0\0a\0\0\0\0", b"\1\0\0\0\xff"],
)
def test_texts_whose_lengths_lie_are_refused(echo_models: dict[str, ServedModel], rest: bytes) -> None:
    head = {"name": "query", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(rest)}}
    with pytest.raises(RequestError) as refused:
        in_bytes(echo_models["one named string"], {"inputs": [head]}, rest)
    assert refused.value.status == 400


def test_nothing_of_what_was_sent_is_repeated(echo_models: dict[str, ServedModel]) -> None:
    secret = "a-secret-of-the-client"
    for body in (
        {"inputs": [tensor(secret, "FP64", [1], [1.0])]},
        {"inputs": [tensor("x", secret, [1], [1.0])]},
        {"inputs": [tensor("x", "FP64", [1], [secret])]},
        {"inputs": [A_DOUBLE], "id": [secret]},
    ):
        with pytest.raises(RequestError) as refused:
            echo_models["one named double"].read_v2(json.dumps(body).encode(), None)
        assert secret not in refused.value.message


def test_limits_are_those_of_mlflows_protocol(echo_models: dict[str, ServedModel]) -> None:
    model = echo_models["no signature"]
    with pytest.raises(TooLargeError, match="1000 rows"):
        by_v2(model, tensor("x", "FP64", [1001], [0] * 1001))
    values = 1_000_000 // 8 + 1
    head = {"name": "x", "datatype": "INT8", "shape": [1, values], "parameters": {"binary_data_size": values}}
    with pytest.raises(TooLargeError, match="values"):
        in_bytes(model, {"inputs": [head]}, b"\0" * values)
    # Few bytes that would become lists in lists in lists.
    deep = {"name": "x", "datatype": "INT8", "shape": [5000] + [1] * 31, "parameters": {"binary_data_size": 5000}}
    with pytest.raises(TooLargeError, match="values"):
        in_bytes(model, {"inputs": [deep]}, b"\0" * 5000)
    with pytest.raises(TooLargeError):
        model.read_v2(json.dumps({"inputs": [tensor("x", "FP64", [500], [0] * 500)]}).encode(), None, small=True)


def test_other_content_types_are_refused() -> None:
    for content_type in (None, "", "application/json", "application/json; charset=utf-8", "application/octet-stream"):
        v2.check_media_type(content_type)
    with pytest.raises(NotAcceptedError):
        v2.check_media_type("text/csv")


# --- answers ---------------------------------------------------------------------------------------------------------

ANSWERS: dict[str, tuple[Any, list[str], dict[str, tuple[str, list[int], list[Any]]]]] = {
    "numbers": (np.array([1, 2]), [], {"output-0": ("INT64", [2], [1, 2])}),
    "a list": ([0.5, 1.5], [], {"output-0": ("FP64", [2], [0.5, 1.5])}),
    "a number": (np.float32(0.5), ["p"], {"p": ("FP32", [1], [0.5])}),
    "half precision": (np.array([0.5], np.float16), [], {"output-0": ("FP16", [1], [0.5])}),
    "big-endian": (np.array([3], ">i2"), [], {"output-0": ("INT16", [1], [3])}),
    "a series": (pd.Series([True, False]), ["p"], {"p": ("BOOL", [2], [True, False])}),
    "a table": (
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        [],
        {"a": ("INT64", [2], [1, 2]), "b": ("BYTES", [2], ["x", "y"])},
    ),
    "arrays by name": ({"p": np.ones((1, 2))}, [], {"p": ("FP64", [1, 2], [1.0, 1.0])}),
    "columns that the signature names": (
        np.array([[1, 2], [3, 4]]),
        ["a", "b"],
        {"a": ("INT64", [2], [1, 3]), "b": ("INT64", [2], [2, 4])},
    ),
    "not a number": ([float("nan")], [], {"output-0": ("FP64", [1], [None])}),
    "texts": (["a", "b\0"], [], {"output-0": ("BYTES", [2], ["a", "b\0"])}),
    "dates": (
        pd.Series(pd.to_datetime(["2021-01-01"])),
        [],
        {"output-0": ("BYTES", [1], ["2021-01-01T00:00:00.000000"])},
    ),
    "records": ([[{"f": 1}], [{"f": 2}]], [], {"output-0": ("BYTES", [2], ['[{"f":1}]', '[{"f":2}]'])}),
    "rows of different lengths": ([[1], [2, 3]], [], {"output-0": ("BYTES", [2], ["[1]", "[2,3]"])}),
    "missing texts": (pd.Series(["a", None]), [], {"output-0": ("BYTES", [2], ["a", "null"])}),
    "nothing": (None, [], {"output-0": ("BYTES", [1], ["null"])}),
}


def question(**fields: Any) -> v2.Question:
    return v2.Question({}, {}, **{"id": None, "outputs": None, "binary": False, **fields})


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_a_model_returns_is_tensors(answer: str) -> None:
    returned, names, expected = ANSWERS[answer]
    headers, body = v2.Reply(question(id="7"), "m", "3", names).encode(returned)
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, shape, data) in expected.items()
    ]
    assert headers == [("Content-Type", "application/json")]
    assert json.loads(body) == {"model_name": "m", "model_version": "3", "id": "7", "outputs": outputs}


def test_outputs_that_are_asked_for_are_answered_in_their_form() -> None:
    asked = question(outputs={"b": True, "a": False})
    table = {"a": [1], "b": ["xy"], "c": [2]}
    headers, body = v2.Reply(asked, "m", "3", []).encode(table)
    length = int(dict(headers)["Inference-Header-Content-Length"])
    outputs = json.loads(body[:length])["outputs"]
    assert [output["name"] for output in outputs] == ["b", "a"]
    assert outputs[0]["parameters"] == {"binary_data_size": 6}
    assert outputs[1]["data"] == [1]
    assert body[length:] == b"\2\0\0\0xy"
    with pytest.raises(SchemaError, match="none of the model"):
        v2.Reply(question(outputs={"d": False}), "m", "3", []).encode(table)
