"""Knocks from every container at every port of every other, at the host and at an address outside."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import yaml
from conftest import ROOT, containers, wait_until
from testinfra.host import Host

VARIABLES = yaml.safe_load((ROOT / "roles" / "host" / "vars" / "main.yml").read_text())
EDGES = {(edge["from"], edge["to"], edge["port"]) for edge in VARIABLES["__host_edges"]}
FIREWALL = "/etc/mlops/firewall/firewall.nft"
# Who has a way out with the settings of the tests.
WAY_OUT = {"alertmanager", "environments"}
PORT = 9000
# As /proc/net writes 127.x and ::1.
LOOPBACK = ("7F", "0000000001000000")
LISTEN = f"import http.server; http.server.HTTPServer(('', {PORT}), http.server.BaseHTTPRequestHandler).serve_forever()"

# From inside the network namespace of each process: which places open within some seconds, all at once.
KNOCKS = """
import json, subprocess, sys
knock = '''
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor
def opens(place):
    address, port = place.rsplit(":", 1)
    try:
        socket.create_connection((address, int(port)), 5).close()
    except OSError:
        return False
    return True
places = sys.argv[1:]
with ThreadPoolExecutor(len(places)) as threads:
    print(json.dumps(dict(zip(places, threads.map(opens, places)))))
'''
asked = json.load(sys.stdin)
knocks = {
    source: subprocess.Popen(
        ["nsenter", "--target", str(pid), "--net", "python3", "-c", knock, *places], stdout=subprocess.PIPE
    )
    for source, (pid, places) in asked.items()
}
print(json.dumps({source: json.loads(process.communicate()[0]) for source, process in knocks.items()}))
"""


@dataclass(frozen=True)
class Target:
    """The host under test, as this machine's Docker knows it."""

    address: str
    image: str


def target_of(name: str) -> Target:
    """The container of this machine that is the host under test."""
    shown = "{{.NetworkSettings.Networks.bridge.IPAddress}} {{.Config.Image}}"
    command = ["docker", "inspect", "--format", shown, name]
    return Target(*subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


@contextmanager
def a_machine_outside(target: Target) -> Iterator[str]:
    """A neighbour of the host that listens; yields where."""
    run = ["docker", "run", "--detach", "--rm", "--entrypoint=python3", target.image, "-c", LISTEN]
    container = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
    try:
        shown = ["docker", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", container]
        yield f"{subprocess.run(shown, check=True, capture_output=True, text=True).stdout.strip()}:{PORT}"
    finally:
        subprocess.run(["docker", "rm", "--force", container], check=True, capture_output=True)


@contextmanager
def training_and_a_stranger(host: Host) -> Iterator[None]:
    """A container with training's address, and one that is not the appliance's in the same network; both listen."""
    (address,) = re.findall(r"^define training = (\S+):00-", host.file(FIREWALL).content_string, flags=re.MULTILINE)
    command = f"--entrypoint=python {containers(host)['mlflow']['Image']} -c {shlex.quote(LISTEN)}"
    run = f"docker run --detach --rm --network=mlops --cap-drop=ALL {{}} {command}"
    try:
        host.check_output(run.format(f"--name=mlops-test-training --mac-address={address}:05"))
        host.check_output(run.format("--name=mlops-test-stranger"))
        # Only a port that is open is knocked at.
        for name in ("mlops-test-training", "mlops-test-stranger"):
            pid = int(host.check_output(f"docker inspect --format '{{{{.State.Pid}}}}' {name}"))
            wait_until(partial(is_open, host, pid), 30, f"{name} listens")
        yield
    finally:
        host.run("docker rm --force mlops-test-training mlops-test-stranger")


def listening(host: Host, pid: int) -> set[int]:
    """TCP ports on which something in the network namespace of a process listens for others."""
    rows = (line.split() for line in host.check_output(f"cat /proc/{pid}/net/tcp /proc/{pid}/net/tcp6").splitlines())
    local = (row[1].rpartition(":") for row in rows if row[3] == "0A")
    return {int(port, 16) for address, _, port in local if not address.endswith(LOOPBACK)}


def is_open(host: Host, pid: int) -> bool:
    """Whether one of the containers that this module starts listens."""
    return PORT in listening(host, pid)


def service_of(container: str) -> str:
    """The service that a container belongs to: a replica is one of its service."""
    return re.sub(r"_[0-9]+$", "", container)


def found(host: Host, target: Target) -> dict[tuple[str, str], bool]:
    """What opens: by who knocks, and at which ``service:port``, ``host:port`` or ``outside``."""
    with training_and_a_stranger(host), a_machine_outside(target) as outside:
        documents = dict(containers(host))
        others = json.loads(host.check_output("docker inspect mlops-test-training mlops-test-stranger"))
        documents |= {document["Name"].removeprefix("/mlops-test-"): document for document in others}
        pids = {name: document["State"]["Pid"] for name, document in documents.items()}
        addresses = {name: one["NetworkSettings"]["Networks"]["mlops"]["IPAddress"] for name, one in documents.items()}
        gateway = host.check_output("docker network inspect mlops --format '{{(index .IPAM.Config 0).Gateway}}'")
        names = {f"{addresses[name]}:{port}": f"{name}:{port}" for name in pids for port in listening(host, pids[name])}
        names |= {f"{gateway}:22": "host:22", f"{target.address}:22": "host outside:22", outside: "outside"}
        asked = {
            name: (pid, [place for place in names if not place.startswith(f"{addresses[name]}:")])
            for name, pid in pids.items()
        }
        script = base64.b64encode(KNOCKS.encode()).decode()
        command = f"python3 -c \"import base64; exec(base64.b64decode('{script}'))\" <<'END'\n{json.dumps(asked)}\nEND"
        answers = json.loads(host.check_output(command))
    return {(source, names[place]): opens for source, knocks in answers.items() for place, opens in knocks.items()}


def allowed(source: str, place: str) -> bool:
    """Whether a place is to open for a container.

    Args:
        source: who knocks.
        place: where, as ``found`` names it.
    """
    name, _, port = place.partition(":")
    if name == "outside":
        return source in {*WAY_OUT, "stranger"}
    if name == "stranger":
        return source in WAY_OUT
    return bool(port) and (service_of(source), service_of(name), int(port)) in EDGES
