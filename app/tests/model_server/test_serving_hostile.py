"""Hostile bodies at a server with two workers: neither is lost, each keeps to its memory, others are answered."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import ATTACKS
from model_server.worker.protocol import CSV, JSON, PARQUET
from serving_harness import Server, Servers, store_model

pytestmark = pytest.mark.timing

REQUESTS = 300
GROWTH = 256 * 1024 * 1024
"""Bytes that a worker may take at its peak, above what it began with: by default its share is 288 MiB."""


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    """With the limits that it has by default."""
    store_model(shared_servers.directory / "models", "search", input_example=["a query"])
    return shared_servers.start()


@pytest.fixture(scope="module")
def bodies() -> list[tuple[str, bytes]]:
    """Every attack, and what is nearly one: cut short, or changed in some places."""
    chooser = random.Random(7)
    made = [(media_type, make()) for media_type, make in ATTACKS.values()]
    small = [(media_type, body) for media_type, body in made if len(body) < 200_000]
    small += [(JSON, b'{"inputs":' * 5_000), (CSV, b"a,b\n1,2\n"), (PARQUET, b"PAR1" + b"\xff" * 40 + b"PAR1")]
    changed = []
    for _ in range(REQUESTS - len(made)):
        media_type, body = chooser.choice(small)
        broken = bytearray(body[: chooser.randrange(1, len(body) + 1)] if chooser.random() < 0.3 else body)
        for _ in range(chooser.randint(1, 4)):
            broken[chooser.randrange(len(broken))] = chooser.randrange(256)
        changed.append((media_type, bytes(broken)))
    chooser.shuffle(made := made + changed)
    return made


@pytest.fixture
def half_sent(server: Server) -> Iterator[None]:
    """Clients that send a part of a large body and then stay, others that stay after each few bytes."""
    head = b"POST /invocations HTTP/1.1\r\nHost: h\r\nContent-Length: 16000000\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(60)]
    over = threading.Event()

    def trickle(client: socket.socket) -> None:
        while not over.wait(0.1):
            client.send(b"x")

    def stay(client: socket.socket) -> None:
        client.sendall(b"[" * 4_000_000)

    with ThreadPoolExecutor(len(clients)) as threads:
        for number, client in enumerate(clients):
            client.sendall(head)
            threads.submit(trickle if number % 2 else stay, client)
        yield
        over.set()
        for client in clients:
            client.close()


@pytest.mark.usefixtures("half_sent")
def test_hostile_bodies_cost_no_worker_and_no_other_client_its_answer(
    server: Server, bodies: list[tuple[str, bytes]]
) -> None:
    workers = server.workers() | server.workers(large=True)
    before = {worker: _peak(worker) for worker in workers}
    over = threading.Event()

    def send(media_type: str, body: bytes, leaves: bool) -> int | str:
        """The status, or what else came of it."""
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        try:
            connection.request("POST", "/invocations", body, {"Content-Type": media_type})
            return "left" if leaves else connection.getresponse().status
        except OSError as error:
            return f"{error!r} after {media_type} {body[:40]!r}"
        finally:
            connection.close()

    def ask_as_others_do() -> Counter[int]:
        statuses: Counter[int] = Counter()
        while not over.wait(0.02):
            statuses[server.predict("q").status] += 1
        return statuses

    with ThreadPoolExecutor(5) as clients:
        other = clients.submit(ask_as_others_do)
        try:
            sent = [clients.submit(send, *body, number % 5 == 0) for number, body in enumerate(bodies)]
            statuses = Counter(future.result() for future in sent)
        finally:
            over.set()
    assert server.workers() | server.workers(large=True) == workers, (
        f"a worker was lost; see the log:\n{server.log.read_text()[-4000:]}"
    )
    assert set(statuses) <= {"left", 200, 400, 413, 503}, f"{statuses}; see the log:\n{server.log.read_text()[-4000:]}"
    assert statuses[413] >= len(ATTACKS) // 2, f"what asks for too much is refused: {statuses}"
    assert set(other.result()) == {200}, f"another client was not answered: {other.result()}"
    grown = {worker: _peak(worker) - before[worker] for worker in workers}
    assert max(grown.values()) < GROWTH, f"a worker took more than a request may take: {grown}"


def test_small_requests_are_answered_while_large_ones_take_their_time(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as clients:
        rows = [f"wait for {tmp_path / 'go'}"] + ["q"] * 200
        large = [clients.submit(server.predict, *rows) for _ in range(4)]
        server.wait_for(lambda: server.metrics()["model_server_in_flight"] >= len(large), "they are there")
        assert [server.predict("q").status for _ in range(20)] == [200] * 20
        (tmp_path / "go").touch()
        assert [len(future.result().json["predictions"]) for future in large] == [201] * 4


def test_a_worker_for_large_requests_that_is_lost_is_replaced_and_nothing_else_is(server: Server) -> None:
    small, large = server.workers(), server.workers(large=True)
    for worker in large:
        os.kill(worker, signal.SIGKILL)
    # This one waits for the worker that comes.
    assert len(server.predict(*["q"] * 200).json["predictions"]) == 200
    assert server.workers() == small
    server.wait_for(lambda: len(server.workers(large=True)) == 1, "another worker")
    assert server.workers(large=True).isdisjoint(large)


def _peak(process: int) -> int:
    """Bytes of memory that a process had at its peak."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
