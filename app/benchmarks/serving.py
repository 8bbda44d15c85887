"""Measures our model server, MLflow's and MLServer with one model, in turn, and the bare model in a loop.

A round measures every server with every number of workers and connections; the report has the medians over the
rounds, so that what else the machine does in one of them does not decide. Run by ``make bench-serving``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks import load
from benchmarks.servers import SERVERS, Place, running

_PORT = 18100
_WORKERS = (1, 2)
_CONNECTIONS = (1, 8, 64)
_WARM_UP_SECONDS = 1.5
_QUERIES = (
    "return the median of numeric data",
    "parse json text into objects",
    "read a csv file into rows",
    "open a url and return the response",
    "compress bytes with gzip",
    "walk a directory tree",
)
# Runs in our server's environment; prints the seconds of one prediction, the median of many.
_BARE_MODEL = """
import json, sys, mlflow.pyfunc, statistics, time
model = mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True).unwrap_python_model()
queries, seconds = json.loads(sys.argv[2]), []
for number in range(4000):
    start = time.perf_counter()
    model.predict([queries[number % len(queries)]])
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds))
"""


@dataclass(frozen=True)
class Row:
    """One server under one load: medians over the rounds."""

    server: str
    workers: int
    connections: int
    rate: float
    """Requests per second."""
    p50: float
    """Seconds."""
    p99: float
    """Seconds."""
    errors: int
    """Of all rounds."""


def measure(place: Place, rounds: int, seconds: float) -> tuple[list[Row], float]:
    """Measure everything.

    Args:
        place: where model and environments are.
        rounds: how often.
        seconds: of load for each number of connections in a round.

    Returns:
        A row per server, workers and connections, and the seconds that the bare model needs for a prediction.
    """
    requests = load.post("/invocations", [json.dumps({"inputs": [query]}).encode() for query in _QUERIES])
    loads: dict[tuple[str, int, int], list[load.Load]] = {}
    bare: list[float] = []
    ports = itertools.count(_PORT, 3)
    for number in range(rounds):
        bare.append(_bare_model(place))
        for name, workers in itertools.product(SERVERS, _WORKERS):
            port = next(ports)
            with running(name, place, port, workers):
                load.run(port, requests, 8, _WARM_UP_SECONDS)
                for connections in _CONNECTIONS:
                    measured = load.run(port, requests, connections, seconds)
                    loads.setdefault((name, workers, connections), []).append(measured)
                    print(
                        f"round {number + 1}  {name:<20} workers {workers}  connections {connections:<3}"
                        f"{measured.rate:8.0f}/s  p99 {measured.quantile(0.99) * 1e3:8.2f} ms",
                        flush=True,
                    )
    rows = [
        Row(
            *key,
            rate=median(one.rate for one in runs),
            p50=median(one.quantile(0.5) for one in runs),
            p99=median(one.quantile(0.99) for one in runs),
            errors=sum(one.errors for one in runs),
        )
        for key, runs in loads.items()
    ]
    return rows, median(bare)


def _bare_model(place: Place) -> float:
    command = [str(place.ours / "bin/python"), "-c", _BARE_MODEL, str(place.model), json.dumps(_QUERIES)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def table(rows: list[Row], bare: float) -> str:
    """The report as text."""
    ours = {(row.workers, row.connections): row for row in rows if row.server == next(iter(SERVERS))}
    lines = [
        f"{'server':<20} {'workers':>7} {'conns':>5} {'req/s':>7} {'p50 ms':>8} {'p99 ms':>8} {'errors':>6}  ours is"
    ]
    for row in sorted(rows, key=lambda row: (row.workers, row.connections)):
        mine = ours[row.workers, row.connections]
        ratio = "" if row is mine else f"{mine.rate / row.rate:.1f} times as fast, p99 {mine.p99 / row.p99:.2f} of its"
        lines.append(
            f"{row.server:<20} {row.workers:>9}{row.connections:>9}{row.rate:>9.0f}{row.p50 * 1e3:>9.2f}"
            f"{row.p99 * 1e3:>9.2f}{row.errors:>9}  {ratio}"
        )
    lines += ["", f"The bare model: {bare * 1e3:.3f} ms, {1 / bare:.0f} predictions per second in a loop."]
    lines += [
        f"{row.server:<20} adds {(row.p50 - bare) * 1e3:.2f} ms to a request (one worker, one connection)."
        for row in rows
        if (row.workers, row.connections) == (1, 1)
    ]
    lines.append(
        f"At 64 connections one worker of ours reaches {ours[1, 64].rate * bare:.2f} of the bare model's rate."
    )
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Bars of requests per second and of the 99th percentile, for each load."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    # Text stays text, and no date or random id makes the same figures another file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench-serving", "font.size": 9})
    figure, axes = plt.subplots(2, len(_WORKERS), figsize=(9, 6), layout="constrained", sharex=True)
    width = 0.8 / len(SERVERS)
    for (column, workers), (index, name) in itertools.product(enumerate(_WORKERS), enumerate(SERVERS)):
        mine = [row for row in rows if row.server == name and row.workers == workers]
        places = [position + (index - 1) * width for position in range(len(_CONNECTIONS))]
        axes[0][column].bar(places, [row.rate for row in mine], width, label=name)
        axes[1][column].bar(places, [row.p99 * 1e3 for row in mine], width, label=name)
        axes[0][column].set_title("one worker" if workers == 1 else "two workers")
        axes[1][column].set_yscale("log")
        axes[1][column].set_xticks(range(len(_CONNECTIONS)), [str(number) for number in _CONNECTIONS])
        axes[1][column].set_xlabel("connections")
    axes[0][0].set_ylabel("requests per second")
    axes[1][0].set_ylabel("99th percentile, ms")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(SERVERS))
    for axis in axes.flat:
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Measure and write ``serving.{txt,json,svg}``."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "work", "ours", "mlflow", "mlserver"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=str(Place.__annotations__[name]))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load for each number of connections")
    arguments = parser.parse_args()
    place = Place(arguments.model, arguments.work, arguments.ours, arguments.mlflow, arguments.mlserver)
    rows, bare = measure(place, arguments.rounds, arguments.seconds)
    report = table(rows, bare)
    print(f"\n{report}")
    (place.work / "serving.txt").write_text(report + "\n")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    document = {"machine": machine, "bare_model_seconds": bare, "rows": [asdict(row) for row in rows]}
    (place.work / "serving.json").write_text(json.dumps(document, indent=2) + "\n")
    plot(rows, place.work / "serving.svg")


if __name__ == "__main__":
    main()
