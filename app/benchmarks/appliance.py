"""Measures the model API through nginx beside the model server itself, on a provisioned local target.

The load is ``wrk``, in the network namespace of each container in turn, so that both ways are over loopback. A round
measures both ways, with kept and with new connections, for each number of connections. Run by ``make bench-appliance``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_CONNECTIONS = (1, 8, 64)
_WAYS = {"direct": ("mlops-serving", 8000), "nginx": ("mlops-nginx", 8080)}
_CLIENTS = ("kept", "new")
_QUERIES = (
    "return the median of numeric data",
    "parse json text into objects",
    "read a csv file into rows",
    "open a url and return the response",
    "compress bytes with gzip",
    "walk a directory tree",
)
_SCRIPT = """
local queries, number = {%s}, 0
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
if "%s" == "new" then wrk.headers["Connection"] = "close" end
request = function()
    number = number + 1
    return wrk.format(nil, nil, nil, '{"inputs": ["' .. queries[number %% #queries + 1] .. '"]}')
end
done = function(summary, latency)
    local errors = summary.errors
    print(string.format('{"requests": %%d, "seconds": %%.6f, "p50": %%.6f, "p99": %%.6f, "errors": %%d}',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True)
class Run:
    """What one run measured; times in seconds."""

    round: int
    clients: str
    connections: int
    way: str
    rate: float
    """Answered requests per second."""
    p50: float
    p99: float
    errors: int


def measure(target: str, work: Path, rounds: int, seconds: int) -> list[Run]:
    """Measure every combination ``rounds`` times.

    Args:
        target: the container that is the local target.
        work: a directory for the scripts of ``wrk``.
        rounds: how often.
        seconds: of load for each combination.
    """
    processes = {way: _process(target, container) for way, (container, _) in _WAYS.items()}
    runs = []
    for number, clients, connections, way in itertools.product(range(rounds), _CLIENTS, _CONNECTIONS, _WAYS):
        script = work / f"{clients}.lua"
        script.write_text(_SCRIPT % (", ".join(json.dumps(query) for query in _QUERIES), clients))
        command = [
            *("nsenter", f"--target={processes[way]}", "--net", "wrk", "--threads=1"),
            *(f"--connections={connections}", f"--duration={seconds}", "--timeout=10", f"--script={script}"),
            f"http://127.0.0.1:{_WAYS[way][1]}/invocations",
        ]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(output.splitlines()[-1])
        rate = found["requests"] / found["seconds"]
        runs.append(Run(number + 1, clients, connections, way, rate, found["p50"], found["p99"], found["errors"]))
        print(
            f"round {number + 1}  {clients:<4} c={connections:<3} {way:<6} {rate:7.0f}/s"
            f"  p50 {found['p50'] * 1e3:8.2f} ms  p99 {found['p99'] * 1e3:8.2f} ms  errors {found['errors']}",
            flush=True,
        )
    return runs


def _process(target: str, container: str) -> int:
    """A process of a container on the target, by its number on this machine."""
    command = ["docker", "exec", target, "docker", "inspect", "--format", "{{.Id}}", container]
    identifier = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    for control_groups in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if identifier in control_groups.read_text():
                return int(control_groups.parent.name)
        except OSError:
            continue
    raise LookupError(f"{container} has no process on {target}: start it with make serve")


def table(runs: list[Run]) -> str:
    """The report: medians over the rounds, and what nginx makes of them."""
    lines = ["clients conns   direct/s    nginx/s  share    p50 adds    p99 is   errors  last round/first"]
    for clients, connections in itertools.product(_CLIENTS, _CONNECTIONS):
        ways = {
            way: [run for run in runs if (run.clients, run.connections, run.way) == (clients, connections, way)]
            for way in _WAYS
        }
        direct, nginx = ways["direct"], ways["nginx"]
        rates = [median(run.rate for run in way) for way in (direct, nginx)]
        adds = median(run.p50 for run in nginx) - median(run.p50 for run in direct)
        tail = median(run.p99 for run in nginx) / median(run.p99 for run in direct)
        errors = sum(run.errors for run in direct + nginx)
        lines.append(
            f"{clients:<7} {connections:>5} {rates[0]:>10.0f} {rates[1]:>10.0f} {rates[1] / rates[0]:>6.2f}"
            f" {adds * 1e3:>8.2f} ms {tail:>7.2f} x {errors:>8} {nginx[-1].rate / nginx[0].rate:>12.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write ``appliance.{txt,json}``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="mlops-local", help="the container that is the local target")
    parser.add_argument("--work", type=Path, required=True, help="a directory for the results")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=30, help="of load for each combination")
    arguments = parser.parse_args()
    runs = measure(arguments.target, arguments.work, arguments.rounds, arguments.seconds)
    report = table(runs)
    print(f"\n{report}")
    (arguments.work / "appliance.txt").write_text(report + "\n")
    (arguments.work / "appliance.json").write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n")


if __name__ == "__main__":
    main()
