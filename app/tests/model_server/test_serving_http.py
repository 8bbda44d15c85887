"""HTTP as clients meet it at a server with workers: paths, connections that are kept, sockets, what a fork leaves."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import requests
from model_server.common import metrics
from prometheus_client import Counter
from serving_harness import Server, Servers, store_model

pytestmark = pytest.mark.timing

QUESTION = b'{"inputs": ["q"]}'
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    store_model(shared_servers.directory / "models", "search", input_example=["a query"])
    return shared_servers.start(SERVING_SOCKET=str(shared_servers.directory / "serving.sock"))


# --- paths ---------------------------------------------------------------------------------------------------------


def test_a_path_with_two_slashes_is_another_path(server: Server) -> None:
    answer = server.request("//invocations", QUESTION, JSON)
    assert (answer.status, answer.json["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), [("POST", "/invocations"), ("GET", "/ping"), ("GET", "/version")])
def test_a_slash_too_many_is_redirected_as_by_mlflows_server(server: Server, method: str, path: str) -> None:
    url = f"http://127.0.0.1:{server.port}{path}/?q=1"
    answer = requests.request(method, url, data=QUESTION, headers=JSON, timeout=30, allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (307, f"{path}?q=1")
    assert requests.request(method, url, data=QUESTION, headers=JSON, timeout=30).status_code == 200


def test_a_slash_too_many_after_an_unknown_path_is_a_404(server: Server) -> None:
    assert server.request("/nowhere/").status == 404


# --- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "content_type", "status"),
    [
        ("POST", "/nowhere", "application/json", 404),
        ("PUT", "/invocations", "application/json", 405),
        ("POST", "/invocations", "text/html", 415),
        ("POST", "/invocations", "application/json", 413),
    ],
)
def test_a_session_loses_no_request_to_an_answer_that_came_early(
    server: Server, method: str, path: str, content_type: str, status: int
) -> None:
    body = b"x" * (20_000_000 if status == 413 else 300_000)
    with requests.Session() as session:
        for _ in range(5 if status == 413 else 30):
            url = f"http://127.0.0.1:{server.port}{path}"
            answer = session.request(method, url, data=body, headers={"Content-Type": content_type}, timeout=30)
            assert answer.status_code == status
            assert session.get(f"http://127.0.0.1:{server.port}/ping", timeout=30).status_code == 200


def test_a_body_that_is_cut_short_is_not_predicted(server: Server) -> None:
    body = b"".join(b'{"inputs": ["q"]}\n' for _ in range(10))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        head = f"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Type: text/csv\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body[:50])
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\n{}\r\n0\r\n\r\n", b"-1\r\n\r\n"])
def test_broken_chunks_are_a_400_in_json_that_closes(server: Server, chunks: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n")
        client.sendall(b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        answer = http.client.HTTPResponse(client)
        answer.begin()
        assert (answer.status, answer.headers["Connection"]) == (400, "close")
        assert json.loads(answer.read())["request_id"] == answer.headers["X-Request-Id"]


def test_long_heads_and_queries_are_read(server: Server) -> None:
    answer = server.request(f"/invocations?{'q' * 20_000}", QUESTION, {**JSON, "Authorization": "t" * 20_000})
    assert answer.status == 200


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /invocations HTTP/1.1\r\nX-", b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 99\r\n\r\n{"],
)
def test_clients_that_stall_hold_up_neither_probes_nor_predictions(server: Server, sent: bytes) -> None:
    stalled = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(300)]
    try:
        for client in stalled:
            client.sendall(sent)
        # More often than there are workers: each of them is reached.
        for _ in range(20):
            assert server.request("/ping").status == 200
            assert server.predict("q").status == 200
    finally:
        for client in stalled:
            client.close()


def test_held_connections_reach_every_worker(server: Server) -> None:
    processes = {answer[0]["score"] for answer in server.predict_on_held_connections("process")}
    assert len(processes) == 2, "8 connections, all on one of two workers"


# --- sockets -------------------------------------------------------------------------------------------------------


def over_the_unix_socket(path: Path, body: bytes, headers: Mapping[str, str] = MappingProxyType({})) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("serving")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(path))
    connection.request("POST", "/invocations", body, {**JSON, **headers})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def test_a_unix_socket_answers_as_the_port_does(server: Server) -> None:
    path = server.log.parent / "serving.sock"
    assert over_the_unix_socket(path, QUESTION) == (200, server.predict("q").json)


def test_who_asked_is_counted_as_the_proxy_says_it_and_not_as_clients_of_the_port_do(server: Server) -> None:
    path = server.log.parent / "serving.sock"

    def counted(name: str) -> float:
        return server.metrics().get(f'model_server_requests_total{{client="{name}",status="200"}}', 0)

    before = counted("unnamed")
    assert over_the_unix_socket(path, QUESTION, {"X-Client": "shop"})[0] == 200
    assert over_the_unix_socket(path, QUESTION, {"X-Client": ""})[0] == 200
    assert server.request("/invocations", QUESTION, {**JSON, "X-Client": "mallory"}).status == 200
    server.wait_for(lambda: counted("unnamed") == before + 2, "what nobody has said his name for")
    server.wait_for(lambda: counted("shop") == 1, "what the proxy has said the name for")
    assert counted("mallory") == 0


def test_a_process_counts_for_a_hundred_clients_and_for_all_others_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_clients", {"unnamed"})
    counter = Counter("test_requests", "As the server's.", ["status", "client"], registry=None)
    monkeypatch.setattr(metrics, "REQUESTS", counter)
    for number in range(120):
        metrics.count_requests(200, f"client {number}")
    metrics.count_requests(200, "client 0", 4)
    metrics.count_requests(503, "")
    samples = (sample for sample in counter.collect()[0].samples if sample.name.endswith("_total"))
    counts = {tuple(sample.labels.values()): sample.value for sample in samples}
    assert len({client for _, client in counts}) == 101
    assert counts["200", "other"] == 21
    assert counts["200", "client 0"] == 5
    assert counts["503", "unnamed"] == 1


def test_a_unix_socket_is_there_after_a_change_of_generations_and_after_a_restart(servers: Servers) -> None:
    (servers.directory / "models").mkdir()
    store_model(servers.directory / "models", "search", input_example=["a query"])
    path = servers.directory / "serving.sock"
    first = servers.start(SERVING_SOCKET=str(path), SERVING_WORKERS="1")
    assert first.stop() == 0
    servers.start(SERVING_SOCKET=str(path), SERVING_WORKERS="1")
    assert over_the_unix_socket(path, QUESTION)[0] == 200


@pytest.mark.parametrize("value", ["relative.sock", "/" + "x" * 200])
def test_a_socket_path_that_cannot_be_used_is_named(servers: Servers, value: str) -> None:
    with pytest.raises(AssertionError, match="SERVING_SOCKET"):
        servers.start(SERVING_SOCKET=value)


# --- what a fork leaves --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_thread(shared_servers: Servers) -> Server:
    root = shared_servers.directory / "own_thread"
    root.mkdir()
    store_model(root, "own_thread")
    return shared_servers.start(MODEL_DIRECTORY=str(root))


def answers_of_both_workers(server: Server) -> dict[int, dict[str, Any]]:
    """What each of two workers answers, by its process id."""
    answers: dict[int, dict[str, Any]] = {}

    def both() -> bool:
        answers.update({answer["process"]: answer for answer in server.predict_on_held_connections("q")})
        return len(answers) == 2

    # One that is slow to hear that its former connections are closed leaves all new ones to the other.
    server.wait_for(both, "both workers answer")
    return answers


def test_a_model_that_starts_a_thread_when_it_is_loaded_answers(own_thread: Server) -> None:
    assert own_thread.predict("q").status == 200


def test_workers_draw_random_numbers_of_their_own(own_thread: Server) -> None:
    first, second = answers_of_both_workers(own_thread).values()
    assert not set(first["drawn"]) & set(second["drawn"])


def test_each_worker_loads_the_model_unless_it_may_be_shared(own_thread: Server, servers: Servers) -> None:
    assert all(process == one["loaded_by"] for process, one in answers_of_both_workers(own_thread).items())
    (servers.directory / "models").mkdir()
    store_model(servers.directory / "models", "echo", input_example=["a"])
    assert servers.start(SERVING_PRELOAD_MODEL="true").predict("q").status == 200
