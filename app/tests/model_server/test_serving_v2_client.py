"""The V2 protocol as its official client speaks it, and hostile bodies, at servers with two workers."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from serving_harness import Server, Servers, store_model
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.timing

SIGNATURE = ModelSignature(
    Schema([ColSpec("double", "width"), ColSpec("long", "count"), ColSpec("string", "name")]),
    Schema([ColSpec("double", "area"), ColSpec("string", "label")]),
    ParamSchema([ParamSpec("factor", "double", 1.0)]),
)
INFER = "/v2/models/m/infer"
LARGE = 600
OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    store_model(shared_servers.directory / "models", "areas", "7", signature=SIGNATURE)
    return shared_servers.start()


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=60, connection_timeout=60) as client:
        yield client


def inputs(rows: int, *, binary: bool = True) -> list[InferInput]:
    columns = {
        "width": ("FP64", np.arange(rows) + 0.5),
        "count": ("INT64", np.full(rows, 2)),
        "name": ("BYTES", np.array([f"é{row}".encode() for row in range(rows)], object)),
    }
    made = []
    for name, (datatype, values) in columns.items():
        tensor = InferInput(name, [rows], datatype)
        tensor.set_data_from_numpy(values, binary_data=binary)
        made.append(tensor)
    return made


def test_the_server_and_its_model_are_live_ready_and_described(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "7")
    assert not client.is_model_ready("m", "8")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("m", "7")
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("m", ["7"], "mlflow")
    assert metadata["inputs"] == [
        {"name": "width", "datatype": "FP64", "shape": [-1]},
        {"name": "count", "datatype": "INT64", "shape": [-1]},
        {"name": "name", "datatype": "BYTES", "shape": [-1]},
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["area", "label"]


@pytest.mark.parametrize("rows", [3, LARGE])
@pytest.mark.parametrize("binary", [True, False])
def test_an_inference(client: InferenceServerClient, rows: int, binary: bool) -> None:
    """Of few rows, and of so many that a worker for large requests answers."""
    result = client.infer(
        "m", inputs(rows, binary=binary), model_version="7", request_id="abc", parameters={"factor": 10.0}
    )
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "7", "abc")
    assert result.as_numpy("area").tolist() == [(row + 0.5) * 20 for row in range(rows)]
    assert [label.decode() for label in result.as_numpy("label")] == [f"é{row}!" for row in range(rows)]


def test_outputs_that_are_asked_for_in_json_and_in_bytes(client: InferenceServerClient) -> None:
    asked = [InferRequestedOutput("label", binary_data=False), InferRequestedOutput("area", binary_data=True)]
    result = client.infer("m", inputs(1), outputs=asked)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["label", "area"]
    assert result.get_output("label")["data"] == ["é0!"]
    assert result.as_numpy("area").tolist() == [1.0]


def test_refusals_are_the_clients_exceptions(client: InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="missing inputs"):
        client.infer("m", inputs(1)[:1])
    with pytest.raises(InferenceServerException, match="none of the model"):
        client.infer("m", inputs(1), outputs=[InferRequestedOutput("volume")])
    with pytest.raises(InferenceServerException, match="No such model"):
        client.infer("other", inputs(1))
    with pytest.raises(InferenceServerException, match="No such model"):
        client.infer("m", inputs(1), model_version="8")


def test_errors_have_the_protocols_form_whoever_finds_them(server: Server) -> None:
    for path, body, status in (
        ("/v2/nowhere", None, 404),
        (INFER, None, 405),
        (INFER, b"{", 400),
        ("/v2/models/other/infer", b"{}", 404),
        (INFER, b" " * (17 * 1024 * 1024), 413),
    ):
        answer = server.request(path, body, OCTETS)
        assert (answer.status, list(answer.json)) == (status, ["error"]), path
        assert answer.headers["X-Request-Id"]
    assert server.request(INFER, b"{}", {"Content-Type": "text/csv"}).status == 415
    assert "error_code" in server.request("/v2nowhere").json


def test_without_a_model_the_server_is_live_and_not_ready(servers: Servers) -> None:
    server = servers.start(ready=False, SERVING_WORKERS="1")
    assert server.request("/v2/health/live").status == 200
    for path, body in (("/v2/health/ready", None), ("/v2/models/m", None), (INFER, b"{}")):
        answer = server.request(path, body, OCTETS)
        assert (answer.status, list(answer.json)) == (503, ["error"]), path


def test_inferences_are_counted_as_predictions(server: Server, client: InferenceServerClient) -> None:
    def rows(values: dict[str, float]) -> float:
        return values['model_server_predictions_total{model="m",version="7"}']

    client.infer("m", inputs(1))
    before = rows(server.wait_for_metrics(lambda values: values["model_server_in_flight"] == 0, "all counted"))
    client.infer("m", inputs(5))
    server.wait_for_metrics(lambda values: rows(values) == before + 5, "five rows")


def test_the_examples_of_the_page_are_answered(servers: Servers) -> None:
    """As they stand in docs/serving.md, but for the port."""
    models = servers.directory / "models"
    models.mkdir()
    store_model(models, "search", name="code-search", input_example=(["a query"], {"top_k": 2}))
    server = servers.start(SERVING_WORKERS="1", MODEL_NAME="code-search")
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    section = page.partition("### The Open Inference Protocol (V2)")[2].partition("\n### ")[0]
    shell, python = re.findall(
        r"```\w+\n(.*?)```", section.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"), re.DOTALL
    )
    for command in ([*("sh", "-ec"), shell], [sys.executable, "-c", python]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "open a file_2" in done.stdout, done.stdout


def hostile(count: int) -> list[tuple[bytes, str | None]]:
    """Bodies that are nearly requests: cut short, changed in some places, with lengths and shapes that lie."""
    chooser = random.Random(7)
    text, json_size = InferenceServerClient.generate_request_body(inputs(4))
    plain, _ = InferenceServerClient.generate_request_body(inputs(4, binary=False))
    made: list[tuple[bytes, str | None]] = [
        (b'{"inputs":' * 5_000, None),
        (json.dumps({"inputs": [_tensor([1] * 100_000)]}).encode(), None),
        (json.dumps({"inputs": [_tensor([2**62] * 32)]}).encode(), None),
        (json.dumps({"inputs": [_tensor([1])] * 50_000}).encode(), None),
        (plain[:-1] + b" " * 100_000, "99"),
    ]
    while len(made) < count:
        whole, size = chooser.choice(((text, json_size), (plain, None)))
        broken = bytearray(whole[: chooser.randrange(1, len(whole) + 1)] if chooser.random() < 0.3 else whole)
        for _ in range(chooser.randint(1, 4)):
            broken[chooser.randrange(len(broken))] = chooser.randrange(256)
        lie = chooser.random() < 0.3
        made.append((bytes(broken), str(chooser.randrange(-1, 2 * len(whole))) if lie else size and str(size)))
    return made


def _tensor(shape: list[int]) -> dict[str, Any]:
    return {"name": "width", "datatype": "FP64", "shape": shape, "data": [1.0]}


def test_hostile_bodies_cost_no_worker(server: Server) -> None:
    workers = server.workers() | server.workers(large=True)

    def send(body: bytes, length: str | None) -> int:
        header = {} if length is None else {"Inference-Header-Content-Length": length}
        return server.request(INFER, body, {**OCTETS, **header}).status

    with ThreadPoolExecutor(4) as clients:
        statuses = Counter(clients.map(lambda request: send(*request), hostile(300)))
    assert server.workers() | server.workers(large=True) == workers, server.log.read_text()[-2000:]
    assert set(statuses) <= {200, 400, 413, 503}, statuses
    assert statuses[400] > 150, statuses
