"""Measures the model API through nginx, plain and with TLS and a token, beside the model server itself.

The load is ``wrk``, in the network namespace of each container in turn, so that every way is over loopback. A round
measures each way, with kept and with new connections, for each number of connections. nginx is first made plain and
then with TLS on the local target, its limits off; a copy of the plain one runs beside, so that the ways alternate. Run
by ``make bench-appliance``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

_CONNECTIONS = (1, 8, 64)
_PLAIN = "bench-plain"
_WAYS = {
    "direct": ("mlops-serving", "http://127.0.0.1:8000"),
    "nginx": (_PLAIN, "http://127.0.0.1:8080"),
    "tls": ("mlops-nginx", "https://localhost:8080"),
}
_NO_LIMITS = {"nginx_api_rate": 1000000, "nginx_api_burst": 1000000, "nginx_api_connections": 60000}
# It needs no network: the model server answers on a socket.
_RUN_PLAIN = f"""
docker run --detach --rm --name {_PLAIN} --network none --user 10003:10002 --cpus 2 --read-only \\
    --tmpfs /tmp:mode=1777 \\
    --volume /etc/mlops/bench.conf:/etc/nginx/nginx.conf:ro \\
    --volume mlops_serving_socket:/run/serving:ro \\
    "$(docker inspect --format '{{{{.Config.Image}}}}' mlops-nginx)"
"""
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
wrk.headers["Authorization"] = "Bearer %s"
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


def measure(inventory: Path, target: str, work: Path, rounds: int, seconds: int) -> list[Run]:
    """Measure every combination ``rounds`` times.

    Args:
        inventory: the inventory of the local target.
        target: the container that is the local target.
        work: a directory for the scripts of ``wrk`` and the authority of the certificate.
        rounds: how often.
        seconds: of load for each combination.
    """
    runs = []
    settings = {**_NO_LIMITS, "nginx_own_ca": str(work.absolute() / "ca")}
    _serve(inventory, settings)
    _on(target, "cp /etc/mlops/nginx/nginx.conf /etc/mlops/bench.conf")
    _serve(inventory, {**settings, "nginx_tls": "own_ca", "nginx_api_tokens": True})
    made = _play(inventory, "playbooks/token.yml", "--extra-vars", "client=bench")
    (token,) = re.findall(r"^[\w-]{43}$", made, flags=re.MULTILINE)
    script = work / "load.lua"
    try:
        _on(target, _RUN_PLAIN)
        processes = {way: _process(target, container) for way, (container, _) in _WAYS.items()}
        for number, clients, connections, way in itertools.product(range(rounds), _CLIENTS, _CONNECTIONS, _WAYS):
            script.touch(mode=0o600)
            script.write_text(_SCRIPT % (", ".join(json.dumps(query) for query in _QUERIES), token, clients))
            command = [
                *("nsenter", f"--target={processes[way]}", "--net", "wrk", "--threads=1"),
                *(f"--connections={connections}", f"--duration={seconds}", "--timeout=10", f"--script={script}"),
                f"{_WAYS[way][1]}/invocations",
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
    finally:
        script.unlink(missing_ok=True)
        _on(target, f"rm --force /etc/mlops/bench.conf; docker rm --force {_PLAIN} || true")
    return runs


def _serve(inventory: Path, settings: dict[str, object]) -> None:
    _play(inventory, "site.yml", "--tags", "serve", "--extra-vars", json.dumps(settings))


def _on(target: str, command: str) -> None:
    subprocess.run(["docker", "exec", target, "sh", "-ec", command], check=True, stdout=subprocess.DEVNULL)


def _play(inventory: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["ansible-playbook", "--inventory", str(inventory), *arguments], capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise SystemExit(f"{result.stdout}{result.stderr}")
    return result.stdout


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
    """The report: medians over the rounds, what nginx makes of them, and what TLS and a token add to it."""
    lines = ["clients conns direct/s nginx/s share   p50 adds   p99 is   tls/s   tls adds  errors  last round/first"]
    for clients, connections in itertools.product(_CLIENTS, _CONNECTIONS):
        ways = {
            way: [run for run in runs if (run.clients, run.connections, run.way) == (clients, connections, way)]
            for way in _WAYS
        }
        rates = {way: median(run.rate for run in found) for way, found in ways.items()}
        p50 = {way: median(run.p50 for run in found) * 1e3 for way, found in ways.items()}
        tail = median(run.p99 for run in ways["nginx"]) / median(run.p99 for run in ways["direct"])
        errors = sum(run.errors for found in ways.values() for run in found)
        trend = ways["nginx"][-1].rate / ways["nginx"][0].rate
        lines.append(
            f"{clients:<7} {connections:>5} {rates['direct']:>8.0f} {rates['nginx']:>7.0f}"
            f" {rates['nginx'] / rates['direct']:>5.2f} {p50['nginx'] - p50['direct']:>7.2f} ms {tail:>6.2f} x"
            f" {rates['tls']:>7.0f} {p50['tls'] - p50['nginx']:>7.2f} ms {errors:>7} {trend:>17.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and write ``appliance.{txt,json}``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inventory", type=Path, default=Path("inventories/local"), help="the local target's")
    parser.add_argument("--target", default="mlops-local", help="the container that is the local target")
    parser.add_argument("--work", type=Path, required=True, help="a directory for the results")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=30, help="of load for each combination")
    arguments = parser.parse_args()
    runs = measure(arguments.inventory, arguments.target, arguments.work, arguments.rounds, arguments.seconds)
    report = table(runs)
    print(f"\n{report}")
    (arguments.work / "appliance.txt").write_text(report + "\n")
    (arguments.work / "appliance.json").write_text(json.dumps([asdict(run) for run in runs], indent=2) + "\n")


if __name__ == "__main__":
    main()
