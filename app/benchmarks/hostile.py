"""Measures what small, honest requests wait for beside hostile bodies, and beside as many cheap requests.

One process asks small questions at a steady rate. Beside it another sends in turn nothing, requests that are a 404, and
hostile bodies; at the lowest priority, so that what it costs itself is not taken for the server's. The report has
medians over the rounds and their ratios: only those say something on a machine that has other work. Run by
``make bench-hostile``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.load import post

_CLIENTS = 4
"""Connections of the honest, kept."""
_PAUSE_SECONDS = 0.01
"""Between two questions on one of them."""
_SENDERS = 64
_WARM_UP_SECONDS = 1.0
_STREAMS = ("quiet", "cheap", "hostile")
_BODY = json.dumps({"inputs": ["a query"]}).encode()


def ask(port: int, seconds: float) -> list[float]:
    """The latencies, in seconds, of small requests at a steady rate."""
    return json.loads(_run(["--ask", str(seconds)], port).communicate()[0])  # type: ignore[no-any-return]


def _run(arguments: Sequence[str], port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.hostile", "--port", str(port), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(port: int, seconds: float) -> None:
    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.connect()
        request = post("/invocations", [_BODY])[0]
        latencies = []
        time.sleep(number * _PAUSE_SECONDS / _CLIENTS)
        end = perf_counter() + seconds
        while (start := perf_counter()) < end:
            connection.sock.sendall(request)
            answer = http.client.HTTPResponse(connection.sock)
            answer.begin()
            answer.read()
            latencies.append(perf_counter() - start if answer.status == 200 else float("inf"))
            time.sleep(_PAUSE_SECONDS)
        return latencies

    with ThreadPoolExecutor(_CLIENTS) as clients:
        measured = [one for latencies in clients.map(client, range(_CLIENTS)) for one in latencies]
    print(json.dumps(measured))


def _send(port: int, stream: str, rate: float) -> None:
    """Send a stream at a rate until the input ends, whether or not the server keeps up; print the statuses it got."""
    bodies = []
    if stream == "hostile":
        # Here, since the other processes begin at once without it.
        from hostile import ATTACKS  # type: ignore[import-not-found]  # the tests' own: no package

        bodies = [(media_type, make()) for media_type, make in ATTACKS.values()]
        random.Random(7).shuffle(bodies)  # noqa: S311 - the same order in each round
    os.nice(19)

    def send(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            if bodies:
                media_type, body = bodies[number % len(bodies)]
                connection.request("POST", "/invocations", body, {"Content-Type": media_type})
            else:
                connection.request("GET", "/nothing")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    print("sending", flush=True)
    start = perf_counter()
    with ThreadPoolExecutor(_SENDERS) as senders:
        sent: list[Future[int]] = []
        while not select.select([sys.stdin], [], [], max(0.0, start + len(sent) / rate - perf_counter()))[0]:
            sent.append(senders.submit(send, len(sent)))
        senders.shutdown(cancel_futures=True)
        statuses = Counter(future.result() for future in sent if not future.cancelled())
    print(json.dumps(statuses))


def measure(port: int, seconds: float, rates: Sequence[float]) -> dict[str, list[float]]:
    """One round: the latencies beside each stream."""
    measured = {}
    for stream in _STREAMS:
        for rate in rates if stream != "quiet" else [0.0]:
            sender = None
            if rate:
                sender = _run(["--send", str(rate), "--stream", stream], port)
                # It has made its bodies.
                sender.stdout.readline()  # type: ignore[union-attr]  # it is a pipe
            time.sleep(_WARM_UP_SECONDS)
            latencies = ask(port, seconds)
            statuses: Counter[str] = Counter(json.loads(sender.communicate()[0]) if sender else {})
            name = f"{stream} {rate:g}/s" if rate else stream
            measured[name] = latencies
            print(
                f"  {name:<14} p50 {_quantile(latencies, 0.5) * 1e3:7.2f} p99 {_quantile(latencies, 0.99) * 1e3:8.2f}"
                f" ms of {len(latencies)}; the stream had {dict(statuses)}",
                flush=True,
            )
    return measured


def _quantile(latencies: list[float], share: float) -> float:
    ordered = sorted(latencies)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def report(rounds: Sequence[dict[str, list[float]]]) -> str:
    """The medians over the rounds."""
    lines = [f"{'beside':<14} {'p50 ms':>8} {'p99 ms':>8} {'p99 / quiet':>12} {'p99 / cheap':>12}"]
    p99 = {name: [_quantile(one[name], 0.99) for one in rounds] for name in rounds[0]}
    for name, values in p99.items():
        p50 = median(_quantile(one[name], 0.5) for one in rounds)
        quiet = median(value / base for value, base in zip(values, p99["quiet"], strict=True))
        cheap = p99.get(name.replace("hostile", "cheap"), p99["quiet"])
        to_cheap = median(value / base for value, base in zip(values, cheap, strict=True))
        lines.append(f"{name:<14} {p50 * 1e3:8.2f} {median(values) * 1e3:8.2f} {quiet:12.2f} {to_cheap:12.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="beside each stream in a round")
    parser.add_argument("--rates", type=float, nargs="+", default=[6.0, 70.0], help="requests per second of a stream")
    parser.add_argument("--workers", type=int, default=2)
    for name in ("--port", "--ask", "--send", "--stream"):
        # Of the processes that this program starts.
        parser.add_argument(name, type=str if name == "--stream" else float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        _ask(int(arguments.port), arguments.ask)
        return
    if arguments.send:
        _send(int(arguments.port), arguments.stream, arguments.send)
        return
    from serving_harness import Servers, store_model  # type: ignore[import-not-found]  # as well

    with tempfile.TemporaryDirectory() as directory:
        servers = Servers(Path(directory))
        (servers.directory / "models").mkdir()
        store_model(servers.directory / "models", "search", input_example=["a query"])
        try:
            server = servers.start(SERVING_WORKERS=str(arguments.workers))
            workers = server.workers() | server.workers(large=True)
            rounds = []
            for number in range(arguments.rounds):
                print(f"round {number + 1}", flush=True)
                rounds.append(measure(server.port, arguments.seconds, arguments.rates))
            lost = workers - server.workers() - server.workers(large=True)
        finally:
            servers.stop()
    print(f"\n{report(rounds)}\n\nWorkers lost or replaced: {len(lost)} of {len(workers)}.")


if __name__ == "__main__":
    main()
