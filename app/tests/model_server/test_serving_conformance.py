"""MLflow's scoring server as its own test suite describes it, asked of this server over HTTP.

Where this server differs from MLflow's on purpose, the test says so in its name or in a comment; docs/serving.md
lists the differences.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.utils.proto_json_utils import NumpyEncoder
from serving_harness import Answer, Server, Servers, store_model

ALL_TYPES = pd.DataFrame(
    {
        "boolean": [True, False, True],
        "integer": np.array([1, 2, 3], np.int32),
        "long": np.array([1, 2, 3], np.int64),
        "float": np.array([math.pi, 2 * math.pi, 3 * math.pi], np.float32),
        "double": [math.pi, 2 * math.pi, 3 * math.pi],
        "binary": [b"\1\2\3", b"\4\5\6", b"\7\10\11"],
        "datetime": pd.to_datetime(["2021-01-01", "2021-02-02", "2021-03-03"]).astype("datetime64[ns]"),
        "string": ["a", "b", "c"],
    }
)
CSV_TYPES = ALL_TYPES[["boolean", "integer", "long", "float", "double", "string"]]


@pytest.fixture(scope="module")
def untyped(shared_servers: Servers) -> Iterator[Server]:
    """A model without a signature."""
    yield from _serve(shared_servers, "untyped", signature=None)


@pytest.fixture(scope="module")
def typed(shared_servers: Servers) -> Iterator[Server]:
    """A model with a column of every type, and a parameter."""
    schema = Schema([ColSpec(name, name) for name in ALL_TYPES.columns])
    params = ParamSchema([ParamSpec("param1", DataType.datetime, np.datetime64("2023-07-01"))])
    yield from _serve(shared_servers, "typed", signature=ModelSignature(schema, params=params))


@pytest.fixture(scope="module")
def csv_typed(shared_servers: Servers) -> Iterator[Server]:
    schema = Schema([ColSpec(name, name) for name in CSV_TYPES.columns])
    yield from _serve(shared_servers, "csv", signature=ModelSignature(schema))


def _serve(servers: Servers, name: str, **options: Any) -> Iterator[Server]:
    root = servers.directory / name
    root.mkdir()
    store_model(root, "echo", **options)
    server = servers.start(MODEL_DIRECTORY=str(root), SERVING_WORKERS="1")
    yield server
    assert server.stop() == 0


def post(server: Server, body: Any, content_type: str | None = "application/json") -> Answer:
    if not isinstance(body, (bytes, str)):
        body = json.dumps(body, cls=NumpyEncoder)
    data = body.encode() if isinstance(body, str) else body
    return server.request("/invocations", data, {"Content-Type": content_type or ""})


def refused(answer: Answer, message: str, code: str = "BAD_REQUEST") -> None:
    assert answer.status == 400
    assert answer.json["error_code"] == code
    assert message in answer.json["message"]


def test_malformed_json(untyped: Server) -> None:
    refused(post(untyped, "this is,,,, not valid json"), "Ensure that input is a valid JSON formatted string.")


def test_json_that_is_not_utf8(untyped: Server) -> None:
    refused(post(untyped, b'{"inputs": ["\xff"]}'), "Ensure that input is a valid JSON formatted string.")


@pytest.mark.parametrize(
    "body",
    [1, "1", [1], None, {"not": "a serialized dataframe"}, {"dataframe_records": [], "dataframe_split": {"data": []}}],
)
def test_json_without_exactly_one_input_field(untyped: Server, body: Any) -> None:
    refused(
        post(untyped, json.dumps(body)),
        "The input must be a JSON dictionary with exactly one of the input fields",
    )


def test_split_must_be_a_dictionary(untyped: Server) -> None:
    refused(post(untyped, {"dataframe_split": [{"a": 1}]}), "Dataframe split format must be a dictionary. Got list")


def test_records_must_be_a_list(untyped: Server) -> None:
    body = {"dataframe_records": {"data": [[1]]}}
    refused(post(untyped, body), "Dataframe records format must be a list of records. Got dictionary.")


def test_split_that_is_no_data_frame(untyped: Server) -> None:
    refused(
        post(untyped, {"dataframe_split": {"index": [1, 2], "data": [[1], [2], [3]]}}),
        "Provided dataframe_split field is not a valid dataframe representation",
    )


def test_empty_csv(untyped: Server) -> None:
    refused(post(untyped, "", "text/csv"), "Ensure that the input is a valid CSV-formatted Pandas DataFrame")


def test_malformed_parquet(untyped: Server) -> None:
    refused(post(untyped, "PAR1", "application/vnd.apache.parquet"), "a valid Parquet Pandas DataFrame")


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=UTF-8", "Application/JSON"])
@pytest.mark.parametrize("orient", ["records", "split"])
def test_data_frames(untyped: Server, orient: Any, content_type: str) -> None:
    frame = pd.DataFrame(np.arange(6.0).reshape(3, 2), columns=["a", "b"])
    answer = post(untyped, {f"dataframe_{orient}": frame.to_dict(orient=orient)}, content_type)
    assert answer.status == 200
    assert answer.json["predictions"][0]["rows"] == [["0.0", "2.0", "4.0"], ["1.0", "3.0", "5.0"]]


def test_strings_that_look_like_numbers_stay_strings(untyped: Server) -> None:
    records = [{"zip": "95120", "cost": 10.45, "score": 8}, {"zip": "95128", "cost": 23.0, "score": 0}]
    answer = post(untyped, {"dataframe_records": records}).json["predictions"][0]
    assert answer["dtypes"][1:] == ["float64", "int64"]
    assert answer["rows"][0] == ["'95120'", "'95128'"]


def test_strings_that_look_like_paths_stay_strings(untyped: Server) -> None:
    frame = pd.DataFrame({"url": ["http://foo.com", "https://bar.com"], "bad_protocol": ["aaa://bbb", "address:/path"]})
    assert post(untyped, {"dataframe_split": frame.to_dict(orient="split")}).status == 200


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [[1.0, 2.0], [3.0, 4.0]]},
        {"instances": [{"a": [1.0, 2.0], "b": [3.0, 4.0]}, {"a": [5.0, 6.0], "b": [7.0, 8.0]}]},
        {"inputs": {"a": [[1.0, 2.0]], "b": [[3.0, 4.0]]}},
    ],
)
def test_tf_serving_formats(untyped: Server, body: Any) -> None:
    assert post(untyped, body).status == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "not_a_supported_content_type",
        "application/json; something=something",
        "application/json; charset=latin-1",
        "text/plain",
        "application/x-www-form-urlencoded",
    ],
)
def test_other_content_types_are_415_in_json(untyped: Server, content_type: str) -> None:
    answer = post(untyped, {"inputs": [1]}, content_type)
    assert answer.status == 415
    assert answer.json["error_code"] == "BAD_REQUEST"


def test_a_missing_content_type_is_read_as_json_where_upstream_fails(untyped: Server) -> None:
    assert post(untyped, {"inputs": [1]}, None).status == 200


def test_csv(csv_typed: Server) -> None:
    shuffled = CSV_TYPES[CSV_TYPES.columns[::-1]]
    answer = post(csv_typed, shuffled.to_csv(index=False), "text/csv")
    assert answer.status == 200
    assert answer.json["predictions"][0]["dtypes"][:5] == ["bool", "int32", "int64", "float32", "float64"]


def test_parquet(csv_typed: Server) -> None:
    body = io.BytesIO()
    CSV_TYPES.to_parquet(body)
    parquet = post(csv_typed, body.getvalue(), "application/vnd.apache.parquet")
    assert parquet.status == 200
    assert parquet.json == post(csv_typed, {"dataframe_records": CSV_TYPES.to_dict(orient="records")}).json


@pytest.mark.parametrize("shape", ["dataframe_split", "dataframe_records", "inputs"])
def test_every_type_arrives_as_the_signature_says(typed: Server, shape: str) -> None:
    orient: Any = {"inputs": "list"}.get(shape, shape.removeprefix("dataframe_"))
    shuffled = ALL_TYPES[ALL_TYPES.columns[::-1]]
    answer = post(typed, {shape: shuffled.to_dict(orient=orient)})
    assert answer.status == 200, answer.body
    echoed = answer.json["predictions"][0]
    assert echoed["columns"] == [repr(name) for name in ALL_TYPES.columns]
    assert echoed["dtypes"][:5] == ["bool", "int32", "int64", "float32", "float64"]
    assert echoed["dtypes"][6] == "datetime64[ns]"
    if shape != "inputs":  # Where it is an array, MLflow takes the text as it is.
        assert echoed["rows"][5] == ["b'\\x01\\x02\\x03'", "b'\\x04\\x05\\x06'", "b'\\x07\\x08\\t'"]


def test_a_missing_column_is_named_and_the_input_is_not_echoed(typed: Server) -> None:
    answer = post(typed, {"dataframe_records": [{"boolean": True, "my secret": "hush"}]})
    refused(answer, "Model is missing inputs ['integer',", "INVALID_PARAMETER_VALUE")
    assert b"secret" not in answer.body
    assert b"hush" not in answer.body
    assert b"Traceback" not in answer.body


def test_a_value_of_the_wrong_type_names_the_column(csv_typed: Server) -> None:
    record = {**CSV_TYPES.to_dict(orient="records")[0], "double": "hush"}
    answer = post(csv_typed, {"dataframe_records": [record]})
    refused(answer, "Failed to convert column double to type 'float64'")
    assert b"hush" not in answer.body


@pytest.mark.parametrize(
    ("params", "status"),
    [
        (None, 200),
        ({}, 200),
        ({"param1": "2024-01-01"}, 200),
        ({"unknown": "value"}, 200),
        ({"param1": "invalid_value1"}, 400),
        ("not a dictionary", 400),
    ],
)
def test_params(typed: Server, params: Any, status: int) -> None:
    body = {"dataframe_split": ALL_TYPES.to_dict(orient="split"), "params": params}
    answer = post(typed, body)
    assert answer.status == status
    assert b"invalid_value1" not in answer.body


def test_nan_is_read(untyped: Server) -> None:
    answer = post(untyped, '{"dataframe_split": {"columns": ["a"], "data": [[NaN], [1.5]]}}')
    assert answer.json["predictions"][0]["rows"] == [["nan", "1.5"]]


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_ping_and_health(untyped: Server, path: str) -> None:
    answer = untyped.request(path)
    assert (answer.status, answer.body, answer.headers["Content-Type"]) == (200, b"\n", "application/json")


def test_version(untyped: Server) -> None:
    assert untyped.request("/version").body.decode() == version("mlflow-skinny")


def test_mlflows_own_client(csv_typed: Server) -> None:
    client = ScoringServerClient(host="127.0.0.1", port=csv_typed.port)
    client.wait_server_ready()
    assert client.get_version() == version("mlflow-skinny")
    assert client.invoke(CSV_TYPES)["predictions"][0]["dtypes"][0] == "bool"
