"""A service reaches what docs/security.md says, and nothing else: not by address, not by UDP, not by name."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import containers
from reachability import EDGES, WAY_OUT, Target, allowed, found, service_of, target_of
from testinfra.host import Host


@pytest.fixture(scope="module")
def target(settings: dict[str, Any]) -> Target:
    return target_of(settings["local_host_name"])


def test_every_container_reaches_what_the_table_says_and_nothing_else(host: Host, target: Target) -> None:
    cells = found(host, target)
    running = {service_of(name) for name in containers(host)} | {"training"}
    tried = {(service_of(source), *place.split(":")) for source, place in cells}
    assert {(a, b, str(port)) for a, b, port in EDGES if {a, b} <= running} <= tried, "every allowed cell was tried"
    assert {place: opens for place, opens in cells.items() if opens is not allowed(*place)} == {}
    print(f"{len(cells)} cells, {sum(cells.values())} of them open")


@pytest.mark.usefixtures("without_firewall")
def test_without_the_firewall_every_container_would_reach_everything(host: Host, target: Target) -> None:
    cells = found(host, target)
    assert [place for place, opens in cells.items() if not opens] == []


def test_a_name_outside_is_not_asked_for(host: Host) -> None:
    ask = "import socket; socket.getaddrinfo('example.org', 80)"
    for service, document in containers(host).items():
        assert bool(document["HostConfig"]["Dns"]) is (service not in WAY_OUT), service
    answer = host.run(f'docker exec mlops-mlflow python -c "{ask}"')
    # A server that was asked would say that there is no such name.
    assert "Temporary failure in name resolution" in answer.stderr
    refused = host.check_output("journalctl --unit=docker --lines=50 --output=cat")
    assert 'question=";example.org.' in refused


def test_udp_does_not_pass_where_tcp_does(host: Host) -> None:
    nginx, mlflow = (containers(host)[name] for name in ("nginx", "mlflow"))
    address = mlflow["NetworkSettings"]["Networks"]["mlops"]["IPAddress"]
    listen = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 5000)); s.settimeout(10);"
        "print('ready', flush=True); print(s.recv(9).decode())"
    )
    send = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'knock', ('{address}', 5000))"

    def heard(pid: int) -> str:
        sender = f'nsenter --target {pid} --net python3 -c "{send}"'
        listener = f'nsenter --target {mlflow["State"]["Pid"]} --net python3 -uc "{listen}"'
        return host.run(
            f'{listener} | while read -r line; do echo "$line"; [ "$line" != ready ] || {sender}; done'
        ).stdout

    assert heard(mlflow["State"]["Pid"]).split() == ["ready", "knock"], "the listener hears"
    assert heard(nginx["State"]["Pid"]).split() == ["ready"]


def test_a_service_that_got_the_ip_address_of_another_is_known_to_its_neighbours(host: Host) -> None:
    # Each takes the first address that is free.
    for order in (("node_exporter", "nginx_exporter"), ("nginx_exporter", "node_exporter")):
        host.check_output("systemctl stop mlops-node_exporter mlops-nginx_exporter")
        for service in order:
            host.check_output(f"systemctl start mlops-{service}")
        documents = containers(host)
        for service in order:
            network = documents[service]["NetworkSettings"]["Networks"]["mlops"]
            neighbours = f"nsenter --target {documents['prometheus']['State']['Pid']} --net ip neigh show"
            known = host.check_output(f"{neighbours} {network['IPAddress']}")
            # Prometheus may not have asked for it yet.
            assert not known or "lladdr" not in known or network["MacAddress"] in known
