"""What MLflow's scoring server answers is answered here: a case for each kind of model, format, and fit of the input.

Where the two differ on purpose, docs/serving.md says so: MLflow's 400 and 500 for input that never reached the model
are a 400, and an exception of the model is a 500.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema
from model_server.worker import encoding, protocol
from model_server.worker.errors import RequestError
from model_server.worker.model import ServedModel
from serving_harness import APPLICATION, PARAMS, SIGNATURES, Servers, store_model
from serving_models import KINDS, Raising, formats

CASES = [
    (name, format_, number)
    for name, kind in KINDS.items()
    for format_, number in [
        *((format_, number) for number, records in enumerate(kind.records) for format_ in formats(records)),
        *(("body", number) for number in range(len(kind.bodies))),
    ]
]


def load(root: Path, model: Any, **options: Any) -> ServedModel:
    return ServedModel.load(store_model(root, model, **options), max_rows=1000, max_body_bytes=1_000_000)


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ServedModel]:
    """The model of a kind, loaded once."""

    @cache
    def loaded(name: str) -> ServedModel:
        kind = KINDS[name]
        return load(tmp_path_factory.mktemp("kind"), kind.model(), **kind.options)

    return loaded


def ours(model: ServedModel, media_type: str, body: bytes) -> Any:
    try:
        invocation = model.read(media_type, body)
        answer = invocation.call()
    except RequestError as error:
        return error
    return json.loads(encoding.predictions(answer) if invocation.wrapped else encoding.dumps(answer))


def upstream(model: ServedModel, media_type: str, body: bytes) -> Any:
    try:
        answer = scoring_server.invocations(body, media_type, model.pyfunc, model.pyfunc.metadata.get_input_schema())
    except MlflowException as error:
        return error
    return json.loads(answer.response)


@pytest.mark.parametrize(("name", "format_", "number"), CASES)
def test_equals_mlflow(name: str, format_: str, number: int, model_of: Callable[[str], ServedModel]) -> None:
    kind, model = KINDS[name], model_of(name)
    if format_ == "body":
        media_type, content = "application/json", kind.bodies[number]
    else:
        media_type, content = formats(kind.records[number])[format_]
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    expected, answer = upstream(model, media_type, body), ours(model, media_type, body)
    if isinstance(expected, MlflowException):
        assert isinstance(answer, RequestError), f"MLflow refuses it: {expected.message}"
        assert answer.status == 400
    else:
        assert answer == expected, getattr(answer, "detail", "")


def test_each_kind_has_what_fits_and_what_does_not(model_of: Callable[[str], ServedModel]) -> None:
    """So that no kind passes by refusing everything, on both sides."""
    for name, kind in KINDS.items():
        bodies = [*kind.bodies, *(formats(records)["records"][1] for records in kind.records)]
        answers = [ours(model_of(name), protocol.JSON, json.dumps(body).encode()) for body in bodies]
        refused = [isinstance(answer, RequestError) for answer in answers]
        assert not all(refused), name
        assert any(refused) or "any" in name.lower(), name


@pytest.mark.parametrize("kind", ["no signature", "one string"])
@pytest.mark.parametrize(("how", "status"), [("invalid", 400), ("otherwise", 500)])
def test_what_a_model_says_is_invalid_is_a_400_on_every_path(tmp_path: Path, kind: str, how: str, status: int) -> None:
    model = load(tmp_path, Raising(), signature=SIGNATURES[kind])
    for body in ({"inputs": [how]}, {"dataframe_split": {"columns": [0], "data": [[how]], "index": [7]}}):
        invocation = model.read(protocol.JSON, json.dumps(body).encode())
        if status == 500:
            with pytest.raises(ValueError, match=how):
                invocation.call()
            continue
        with pytest.raises(RequestError) as refused:
            invocation.call()
        assert (refused.value.status, refused.value.error_code) == (400, "INVALID_PARAMETER_VALUE")
        assert "own words" not in refused.value.message


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": ["a"], "params": {"top_k": "hush", "threshold": 0.5}},
        {"dataframe_split": {"data": [["a"]], "index": ["x"]}, "params": {"top_k": "hush"}},
        {"prompt": "a", "top_k": "hush", "threshold": 0.5},
    ],
)
def test_a_params_error_names_the_parameter(tmp_path: Path, body: dict[str, Any]) -> None:
    model = load(tmp_path, "echo", signature=ModelSignature(Schema([ColSpec("string")]), params=PARAMS))
    with pytest.raises(RequestError) as refused:
        model.read(protocol.JSON, json.dumps(body).encode())
    assert (
        refused.value.message
        == "Invalid input. The value of top_k in params does not fit. GET /model shows the signature."
    )


@pytest.mark.parametrize("kind", ["a tensor", "named tensors"])
def test_csv_for_a_signature_of_tensors_is_refused(kind: str, echo_models: dict[str, ServedModel]) -> None:
    assert isinstance(upstream(echo_models[kind], protocol.CSV, b"a,b\n1,2\n"), MlflowException)
    answer = ours(echo_models[kind], protocol.CSV, b"a,b\n1,2\n")
    assert isinstance(answer, RequestError)
    assert answer.status == 400


@pytest.mark.timing
def test_a_chat_agent_over_http(servers: Servers) -> None:
    kind = KINDS["a chat agent"]
    (servers.directory / "models").mkdir()
    store_model(servers.directory / "models", kind.model())
    server = servers.start(SERVING_WORKERS="1", PYTHONPATH=f"{APPLICATION}:{Path(__file__).parent}")
    answer = server.request("/invocations", json.dumps(kind.bodies[0]).encode(), {"Content-Type": "application/json"})
    assert answer.status == 200
    assert answer.json["messages"][0]["content"] == "['hello'] None None"
    assert server.request("/openapi.json").status == 200
    assert server.request("/model").json["doubt"] is None
