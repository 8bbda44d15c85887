"""A server on a loopback port, as an operator meets it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import mlflow
import psutil
import pytest
from serving_harness import RegisteredModel, Server, Servers, free_port, store_model

pytestmark = pytest.mark.timing

EXAMPLE = {"input_example": (["a query"], {"top_k": 2})}
EDGES = {"text_length": ("5", "10", "+Inf"), "top_score": ("0.5", "+Inf")}


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    """The search model, with small limits, and nothing that could be asked for another."""
    profile = {
        "text_length": {"edges": [5, 10], "expected": [0.5, 0.3, 0.2]},
        "top_score": {"edges": [0.5], "expected": [0.5, 0.5]},
    }
    store_model(shared_servers.directory / "models", "search", "7", metadata={"drift_profile": profile}, **EXAMPLE)
    return shared_servers.start(SERVING_QUEUE_LENGTH="2", SERVING_MAX_BODY_BYTES="20000", SERVING_MAX_ROWS="10")


# --- answers -------------------------------------------------------------------------------------------------------


def test_answers(server: Server) -> None:
    answer = server.predict("open a file")
    assert answer.status == 200
    assert answer.json == {
        "predictions": [
            [{"function": "open a file_0", "score": 1.0}, {"function": "open a file_1", "score": 0.5}],
        ]
    }


def test_every_answer_carries_the_model_version_and_a_request_id(server: Server) -> None:
    for path in ("/ping", "/ready", "/metrics", "/nowhere"):
        headers = server.request(path).headers
        assert headers["X-Model-Version"] == "7"
        assert len(headers["X-Request-Id"]) == 16
    given = server.request("/ping", headers={"X-Request-Id": "abc-123"}).headers["X-Request-Id"]
    assert given == "abc-123"
    assert server.request("/ping", headers={"X-Request-Id": "no spaces"}).headers["X-Request-Id"] != "no spaces"


def test_model_describes_itself(server: Server) -> None:
    model = server.request("/model").json
    assert (model["name"], model["version"], model["run_id"]) == ("m", "7", "run7")
    assert model["fast_path"] is True
    assert "top_k" in model["signature"]["params"][0]["name"]
    assert model["input_example"]["inputs"] == ["a query"]


def test_openapi_has_the_models_schema_and_example(server: Server) -> None:
    document = server.request("/openapi.json").json
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    assert content["example"]["inputs"] == ["a query"]
    assert content["schema"]["oneOf"][0]["properties"]["inputs"]["items"] == {"type": "string"}


def test_unknown_paths_and_methods_are_answered_in_json(server: Server) -> None:
    missing = server.request("/nowhere")
    assert (missing.status, missing.json["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    wrong = server.request("/invocations")
    assert (wrong.status, set(wrong.headers["Allow"].split(", "))) == (405, {"OPTIONS", "POST"})
    assert wrong.json["request_id"]


# --- failures and limits ---------------------------------------------------------------------------------------------


def test_a_model_that_raises_is_a_500_whose_id_the_log_carries(server: Server) -> None:
    answer = server.predict("raise")
    assert (answer.status, answer.json["error_code"]) == (500, "INTERNAL_ERROR")
    assert b"secret" not in answer.body
    assert b"Traceback" not in answer.body
    entry = next(entry for entry in server.logged() if entry.get("request_id") == answer.json["request_id"])
    assert "a secret of the model" in entry["exception"]


def test_a_model_that_exits_does_not_end_the_worker(server: Server) -> None:
    workers = server.workers()
    assert server.predict("exit").status == 500
    assert server.workers() == workers


def test_a_body_that_is_too_large_is_a_413(server: Server) -> None:
    answer = server.predict("x" * 20000)
    assert answer.status == 413
    assert "20000 bytes" in answer.json["message"]


def test_a_chunked_body_that_is_too_large_is_a_413(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    chunks = iter([b"x" * 8000] * 3)
    connection.request("POST", "/invocations", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_too_many_rows_are_a_413(server: Server) -> None:
    answer = server.predict(*["q"] * 11)
    assert answer.status == 413
    assert "10 rows" in answer.json["message"]
    assert server.predict(*["q"] * 10).status == 200


def test_a_slow_prediction_is_a_504_while_it_runs_and_costs_its_worker_when_it_goes_on(servers: Servers) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start(SERVING_REQUEST_TIMEOUT_SECONDS="1", SERVING_WORKERS="1")
    former = server.workers()
    answer = server.predict("wait for /nowhere")
    assert (answer.status, answer.json["error_code"]) == (504, "DEADLINE_EXCEEDED")
    server.wait_for(lambda: server.workers().isdisjoint(former) and len(server.workers()) == 1, "a new worker")
    server.wait_for(lambda: server.predict("q").status == 200, "an answer of the new worker")


def test_a_full_queue_is_a_503_with_retry_after_and_never_a_pile_up(server: Server, tmp_path: Path) -> None:
    # Two workers, each with one prediction that runs and two that wait.
    places = 6
    with ThreadPoolExecutor(20) as clients:
        asked = [clients.submit(server.predict, f"wait for {tmp_path / 'go'}") for _ in range(20)]
        refused = [future.result() for future in itertools.islice(as_completed(asked), 20 - places)]
        (tmp_path / "go").touch()
    assert {answer.status for answer in refused} == {503}
    assert all(answer.headers["Retry-After"] == "1" and "busy" in answer.json["message"] for answer in refused)
    answered = [answer for answer in (future.result() for future in asked) if answer not in refused]
    assert {answer.status for answer in answered} == {200}
    assert len(answered) == places
    assert server.predict("q").status == 200


def test_debug_shows_what_is_hidden_otherwise(servers: Servers) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start(SERVING_DEBUG="true", SERVING_WORKERS="1")
    assert "a secret of the model" in server.predict("raise").json["detail"]


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_sum_over_workers_and_survive_their_death(servers: Servers) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start()
    answered_by = {answer[0]["score"] for answer in server.predict_on_held_connections("process", 60)}
    workers = server.workers()
    assert answered_by == workers, "both workers answer"
    name = 'model_server_predictions_total{model="m",version="1"}'
    server.wait_for_metrics(lambda metrics: metrics.get(name) == 60, "60 predictions")
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    server.wait_for(lambda: len(server.workers()) == 2 and server.workers().isdisjoint(workers), "new workers")
    server.wait_for(lambda: server.answers("/ready", 200), "ready again")
    assert server.predict("a", "b").status == 200
    metrics = server.wait_for_metrics(lambda metrics: metrics[name] >= 62, "2 more")
    assert metrics[name] == 62
    assert metrics["model_server_in_flight"] == 0
    assert metrics['model_server_batch_rows_bucket{le="1.0"}'] == 60
    assert metrics['model_server_model_info{model="m",run_id="run1",version="1"}'] == 1
    for part in ("queue", "predict", "invocation"):
        assert metrics[f"model_server_{part}_seconds_count"] == 61


def test_metrics_say_what_went_wrong_and_which_way_the_input_took(server: Server) -> None:
    before = server.metrics()

    def grown(name: str, after: dict[str, float]) -> float:
        return after.get(name, 0) - before.get(name, 0)

    fast = 'model_server_input_path_total{path="fast"}'
    server.predict("raise")
    server.request("/invocations", b"{", {"Content-Type": "application/json"})
    server.predict("q")
    server.request("/ping", method="BREW")
    after = server.wait_for_metrics(lambda metrics: grown(fast, metrics) >= 1, "the prediction")
    assert grown(fast, after) == 1
    assert grown('model_server_errors_total{kind="model"}', after) == 1
    assert grown('model_server_errors_total{kind="malformed"}', after) == 1
    assert grown('model_server_requests_total{client="unnamed",status="200"}', after) == 1
    assert grown('model_server_errors_total{kind="http"}', after) == 1, "no method of HTTP"
    assert grown('model_server_requests_total{client="unnamed",status="400"}', after) == 2
    assert grown('model_server_requests_total{client="unnamed",status="500"}', after) == 1
    assert grown('flask_http_request_total{method="GET",status="200"}', after) >= 1, "the looks at the metrics before"
    assert not any("BREW" in name for name in after)


def test_drift_is_counted_in_the_bins_of_the_training_profile(server: Server) -> None:
    before = server.metrics()

    def grown(feature: str, after: dict[str, float]) -> list[float]:
        names = [
            f'model_server_observed_total{{bin="{edge}",feature="{feature}",version="7"}}' for edge in EDGES[feature]
        ]
        return [after.get(name, 0) - before.get(name, 0) for name in names]

    server.predict("abc", "abcdefg", "abcdefgh")
    after = server.wait_for_metrics(lambda metrics: sum(grown("top_score", metrics)) >= 3, "three rows")
    assert grown("text_length", after) == [1, 2, 0]
    assert grown("top_score", after) == [0, 3]
    assert after['model_server_expected_share{bin="10",feature="text_length",version="7"}'] == 0.3


# --- starting and stopping -------------------------------------------------------------------------------------------


def test_a_stop_lets_requests_in_flight_finish(servers: Servers, tmp_path: Path) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start(SERVING_SHUTDOWN_TIMEOUT_SECONDS="60")
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(server.predict, f"wait for {tmp_path / 'go'}")
        server.wait_for_metrics(lambda metrics: metrics["model_server_in_flight"] == 1, "a request in flight")
        server.process.terminate()
        server.wait_for(lambda: any(entry["message"] == "stopping" for entry in server.logged()), "the stop")
        assert not answer.done()
        (tmp_path / "go").touch()
        assert answer.result().status == 200
    assert server.process.wait(30) == 0
    with pytest.raises(urllib.error.URLError):
        server.request("/ping")


def test_a_dead_server_is_started_again(servers: Servers) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start(SERVING_WORKERS="1")
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)
    server.wait_for(lambda: any(entry["message"] == "the server died" for entry in server.logged()), "the death")
    server.wait_for(lambda: server.answers("/ready", 200), "ready again")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVING_PORT", "http"),
        ("SERVING_WORKERS", "-1"),
        ("SERVING_DEBUG", "maybe"),
        ("MODEL_NAME", "a/b"),
        ("MLFLOW_TRACKING_URI", "mlflow:5000"),
        ("MLFLOW_TRACKING_URI", "http://"),
        ("MODEL_DIRECTORY", "/nonexistent"),
        ("SERVING_MAX_ROWS", "1e3"),
        ("SERVING_REQUEST_TIMEOUT_SECONDS", "nan"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(servers: Servers, name: str, value: str) -> None:
    server = _start_and_fail(servers, **{name: value})
    assert server.process.returncode == 2
    assert f"{name}={value!r} cannot be used: give " in server.log.read_text().replace("there is no such", "give ")


def test_a_port_in_use_is_named(servers: Servers) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server = _start_and_fail(servers, SERVING_PORT=str(other.getsockname()[1]))
    assert server.process.returncode == 1
    assert "SERVING_PORT" in server.log.read_text()


# --- models from the registry ----------------------------------------------------------------------------------------


def test_without_a_model_it_says_what_to_do_and_serves_the_first_that_comes(
    servers: Servers, registered: RegisteredModel
) -> None:
    server = servers.start(ready=False, MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name)
    assert server.request("/ping").status == 200
    assert server.request("/ready").status == 503
    answer = server.predict("q")
    assert (answer.status, answer.json["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")
    assert "--tags train" in answer.json["message"]
    assert answer.headers["Retry-After"]
    version = registered.register("search", **EXAMPLE)
    server.wait_for(lambda: server.serves(version), "the first model")
    # The workers that had no model are gone: none of these may meet one.
    assert {server.predict("q").status for _ in range(50)} == {200}


def test_a_slow_request_does_not_hold_up_the_other_connections(servers: Servers, tmp_path: Path) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    server = servers.start(SERVING_WORKERS="1")
    slow, quick = (http.client.HTTPConnection("127.0.0.1", server.port, timeout=30) for _ in range(2))

    def ask(connection: http.client.HTTPConnection, query: str) -> None:
        connection.request(
            "POST", "/invocations", json.dumps({"inputs": [query]}), {"Content-Type": "application/json"}
        )

    for connection in (slow, quick):
        ask(connection, "q")
        connection.getresponse().read()
    # One thread follows both connections now.
    ask(slow, f"wait for {tmp_path / 'go'}")
    for _ in range(3):
        quick.request("GET", "/ping")
        answer = quick.getresponse()
        answer.read()
        assert answer.status == 200
    (tmp_path / "go").touch()
    assert slow.getresponse().status == 200
    for connection in (slow, quick):
        connection.close()


def test_a_new_champion_replaces_the_old_without_dropping_a_request(
    servers: Servers, registered: RegisteredModel
) -> None:
    first = registered.register("search", **EXAMPLE)
    server = servers.start(MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name)
    second = registered.register("search", **EXAMPLE)
    stop = threading.Event()
    last: dict[int, str | None] = {}

    def ask(client: int) -> None:
        """Ask again and again; an answer that closes the connection makes the client open another."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        while not stop.is_set():
            headers = {"Content-Type": "application/json"} | ({"Connection": "close"} if client % 2 else {})
            connection.request("POST", "/invocations", b'{"inputs":["q"]}', headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            last[client] = answer.headers["X-Model-Version"]
            # The new model needs some of the processor to start.
            time.sleep(0.005)
        connection.close()

    def all_see(version: str) -> None:
        last.clear()
        server.wait_for(
            lambda: [*last.values()] == [version] * 4 or any(future.done() for future in futures),
            f"every client is answered by version {version}",
        )

    with ThreadPoolExecutor(4) as clients:
        futures = [clients.submit(ask, number) for number in range(4)]
        try:
            all_see(second)
            registered.point_to(first)
            all_see(first)
        finally:
            stop.set()
        for future in futures:
            future.result()
    metrics = server.metrics()
    assert metrics["model_server_model_switches_total"] >= 2
    assert metrics["model_server_registry_up"] == 1


@pytest.mark.parametrize("broken", ["broken_on_load", "broken_on_predict"])
def test_a_broken_champion_never_replaces_the_one_that_serves(
    servers: Servers, registered: RegisteredModel, broken: str
) -> None:
    first = registered.register("search", **EXAMPLE)
    server = servers.start(MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name, SERVING_WORKERS="1")
    second = registered.register(broken, input_example=["q"])
    rejected = 'model_server_model_rejections_total{reason="start"}'
    server.wait_for(lambda: server.metrics().get(rejected, 0) == 1, "the rejection")
    assert server.serves(first)
    assert server.predict("q").status == 200
    entry = next(entry for entry in server.logged() if entry["message"] == "a model version was rejected")
    assert (entry["version"], entry["serving"]) == (second, first)
    assert "no such device" in entry["reason"] or "shapes do not match" in entry["reason"]
    assert server.request("/model").json["rejected"] == f"version {second} was rejected: {entry['reason']}"
    third = registered.register("search", **EXAMPLE)
    server.wait_for(lambda: server.serves(third), "the next good one")
    assert server.metrics()[rejected] == 1
    server.wait_for(lambda: server.request("/model").json["rejected"] is None, "the rejection is of the past")


def test_a_first_version_that_is_rejected_is_named_with_the_reason(
    servers: Servers, registered: RegisteredModel
) -> None:
    version = registered.register("broken_on_load")
    server = servers.start(ready=False, MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name)
    said = f"No model is served yet: version {version} was rejected: it cannot be loaded: RuntimeError: no such device"
    server.wait_for(lambda: said in server.request("/ready").json["message"], "the rejection")
    for answer in (server.request("/ready"), server.request("/model"), server.predict("q")):
        assert answer.status == 503
        assert said in answer.json["message"]


def test_a_version_that_does_not_answer_its_example_serves_where_nothing_else_does(
    servers: Servers, registered: RegisteredModel
) -> None:
    first = registered.register("broken_on_predict", input_example=["q"])
    server = servers.start(MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name, SERVING_WORKERS="1")
    assert server.serves(first)
    assert "does not answer its own input example" in server.request("/model").json["doubt"]
    assert server.predict("q").status == 500


def test_a_version_whose_example_does_not_fit_its_signature_is_served_in_place_of_another(servers: Servers) -> None:
    store_model(_models(servers), "search", "1", **EXAMPLE)
    server = servers.start(SERVING_WORKERS="1")
    stored = store_model(_models(servers), "search", "2", **EXAMPLE)
    (stored.model_path / "serving_input_example.json").write_text('{"inputs": [1]}')
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)
    (_models(servers) / "m" / "current").write_text(stored.directory.name)
    server.wait_for(lambda: server.answers("/ready", 200) and server.serves("2"), "version 2")
    assert "does not answer its own input example" in server.request("/model").json["doubt"]


def test_a_registry_that_is_a_database_is_followed_as_a_server_is(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where MLflow puts artifacts for which no server is asked.
    monkeypatch.chdir(tmp_path)
    registry = RegisteredModel(f"sqlite:///{tmp_path}/mlflow.db", "local")
    former = mlflow.get_tracking_uri()
    try:
        first = registry.register("search", **EXAMPLE)
        server = servers.start(MLFLOW_TRACKING_URI=registry.uri, MODEL_NAME=registry.name, SERVING_WORKERS="1")
        assert server.serves(first)
        second = registry.register("search", **EXAMPLE)
        server.wait_for(lambda: server.serves(second), "the new champion")
        fixed = servers.start(MLFLOW_TRACKING_URI=registry.uri, MODEL_URI=f"models:/{registry.name}/{first}")
        # It begins with the newest that is on their disk.
        fixed.wait_for(lambda: fixed.serves(first), "the version that is asked for")
    finally:
        mlflow.set_tracking_uri(former)


def test_a_version_may_be_asked_for_by_its_number_or_as_the_latest(
    servers: Servers, registered: RegisteredModel, tmp_path: Path
) -> None:
    def start(wanted: str) -> Server:
        directory = tmp_path / wanted
        directory.mkdir()
        uri = f"models:/{registered.name}/{wanted}"
        return servers.start(
            MLFLOW_TRACKING_URI=registered.uri, MODEL_URI=uri, MODEL_DIRECTORY=str(directory), SERVING_WORKERS="1"
        )

    first = registered.register("search", **EXAMPLE)
    by_number, latest = start(first), start("latest")
    second = registered.register("search", **EXAMPLE)
    # The alias goes back, which is none of their business.
    registered.point_to(first)
    latest.wait_for(lambda: latest.serves(second), "the latest version")
    assert by_number.serves(first)


def test_a_hangup_signal_has_the_registry_asked_at_once(servers: Servers, registered: RegisteredModel) -> None:
    first = registered.register("search", **EXAMPLE)
    server = servers.start(
        MLFLOW_TRACKING_URI=registered.uri, MODEL_NAME=registered.name, SERVING_MODEL_REFRESH_SECONDS="86400"
    )
    assert server.serves(first)
    second = registered.register("search", **EXAMPLE)
    server.process.send_signal(signal.SIGHUP)
    server.wait_for(lambda: server.serves(second), "the new champion")


def test_what_the_registry_has_not_is_named(servers: Servers, registered: RegisteredModel) -> None:
    registered.register("search", **EXAMPLE)
    uri = f"models:/{registered.name}/7"
    server = servers.start(ready=False, MLFLOW_TRACKING_URI=registered.uri, MODEL_URI=uri)
    server.wait_for(
        lambda: f"the registry has no {uri}, " in server.request("/ready").json["message"], "the version is missed"
    )


def test_a_registry_that_cannot_be_asked_is_named_where_no_model_is(servers: Servers) -> None:
    server = servers.start(ready=False, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    server.wait_for(
        lambda: "the registry cannot be asked: " in server.request("/ready").json["message"], "the registry is missed"
    )


def test_a_model_that_answers_otherwise_than_at_training_time_is_rejected(servers: Servers) -> None:
    expected = [[{"function": "a query_0", "score": 1.0}, {"function": "a query_1", "score": 0.25}]]
    store_model(_models(servers), "search", "1", metadata={"example_predictions": expected}, **EXAMPLE)
    server = servers.start(ready=False)
    server.wait_for(
        lambda: any("otherwise than at training time" in entry.get("reason", "") for entry in server.logged()),
        "the rejection",
    )
    assert server.request("/ready").status == 503


def test_it_serves_from_its_disk_when_mlflow_is_gone(servers: Servers) -> None:
    for version in ("1", "2"):
        store_model(_models(servers), "search", version, **EXAMPLE)
    server = servers.start(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert server.serves("2")
    server.wait_for(lambda: server.metrics().get("model_server_registry_up") == 0, "the registry is missed")
    assert server.predict("q").status == 200
    unreachable = [entry for entry in server.logged() if "cannot be asked" in entry["message"]]
    assert len(unreachable) == 1, "said once, not at every round"


def test_a_slow_mlflow_slows_nothing_down(servers: Servers) -> None:
    store_model(_models(servers), "search", **EXAMPLE)
    over = threading.Event()

    def answer_for_ever(listener: socket.socket) -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(b"HTTP/1.1 200 OK\r\n")
            while not over.wait(0.2):
                client.sendall(b"X-Slow: 1\r\n")

    with ThreadPoolExecutor(1) as mlflow, socket.create_server(("127.0.0.1", 0)) as listener:
        mlflow.submit(answer_for_ever, listener)
        server = servers.start(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert server.predict("q").status == 200
        # Its question is not answered yet, and never will be.
        assert server.stop() == 0
        over.set()


# --- robustness ------------------------------------------------------------------------------------------------------


def test_ten_thousand_malformed_bodies(server: Server) -> None:
    workers = server.workers()
    chooser = random.Random(20)
    seeds = [
        b'{"inputs":["read a csv"],"params":{"top_k":2}}',
        b'{"dataframe_split":{"columns":["a"],"data":[["b"]]}}',
        b'{"dataframe_records":[{"a":1}]}',
        b'{"instances":[1]}',
        b"a,b\n1,2\n",
        b"PAR1\0\0\0\0PAR1",
        b"[" * 5000,
        b'{"inputs":' * 1200,
        b'{"inputs":["\\ud800"]}',
        b'{"inputs":[1e999]}',
        b'{"inputs":[' + b"9" * 400 + b"]}",
    ]
    types = ["application/json"] * 6 + ["text/csv", "application/vnd.apache.parquet", "text/html", ""]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)

    def send() -> int:
        body = bytearray(chooser.choice(seeds))
        for _ in range(chooser.randint(0, 4)):
            position = chooser.randrange(len(body))
            body[position : position + chooser.randint(0, 2)] = chooser.randbytes(chooser.randint(0, 2))
            body = body or bytearray(b" ")
        connection.request("POST", "/invocations", bytes(body), {"Content-Type": chooser.choice(types)})
        answer = connection.getresponse()
        text = answer.read()
        assert answer.status < 400 or json.loads(text)["error_code"]
        return answer.status

    statuses = {send() for _ in range(2000)}
    settled = _memory(workers)
    statuses |= {send() for _ in range(8000)}
    connection.close()
    assert statuses <= {200, 400, 413, 415}
    assert server.workers() == workers
    assert _memory(workers) - settled < 10_000_000


def _memory(processes: set[int]) -> int:
    return sum(psutil.Process(pid).memory_full_info().uss for pid in processes)


def _models(servers: Servers) -> Path:
    path = servers.directory / "models"
    path.mkdir(exist_ok=True)
    return path


def _start_and_fail(servers: Servers, **environment: str) -> Server:
    with pytest.raises(AssertionError, match="the server ended"):
        servers.start(**environment)
    server = servers.started[-1]
    server.process.wait(10)
    return server
