"""Who reaches whom is written once: the firewall, the containers' addresses and docs/security.md follow from it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import role_variables
from ansible.module_utils.container_unit import MAC_PREFIX, MODELS_MAC_PREFIX, ContainerSpec, Health

ROOT = Path(__file__).parents[2]
ROLES = ROOT / "roles"
TABLE = re.compile(r"^\| `(\w+)` \| (.+) \|$", flags=re.MULTILINE)


@cache
def rendered(name: str) -> Any:
    """A variable of the role host, its templates resolved."""
    return role_variables.rendered("host", name)


def address(name: str, *, egress: bool = False) -> str:
    health = Health("true")
    return ContainerSpec(name, "image:1", "a service", health, "10020:10020", egress=egress).mac_address


EDGES = {(edge["from"], edge["to"], edge["port"]) for edge in rendered("__host_edges")}


def services() -> set[str]:
    return {path.parts[-3] for path in ROLES.glob("*/tasks/*.yml") if "systemd_container:" in path.read_text()}


def test_every_service_and_what_runs_once_has_a_place_in_it_and_nobody_else() -> None:
    connected = {name for source, destination, _ in EDGES for name in (source, destination)}
    assert connected == services() | {"training", "signing"}


def test_the_firewall_knows_the_addresses_that_systemd_container_gives() -> None:
    assert rendered("__host_mac_prefix") == MAC_PREFIX
    for service, first_bytes in rendered("__host_mac_addresses").items():
        assert address(service) == f"{first_bytes}:01"
        assert address(f"{service}_3") == f"{first_bytes}:03"
        assert address(service, egress=True) == f"{first_bytes}:81"
        assert f"define {service} = {first_bytes}:00-{first_bytes}:ff\n" in rendered("__host_firewall")


def test_no_two_services_have_the_same_address() -> None:
    addresses = rendered("__host_mac_addresses").values()
    assert len(set(addresses)) == len(addresses)


def test_the_firewall_lets_these_connections_pass_and_no_other() -> None:
    elements = re.findall(r"^ +\$(\w+) \. \$(\w+) \. (\d+),$", rendered("__host_firewall"), flags=re.MULTILINE)
    let = {(source, destination, int(port)) for source, destination, port in elements}
    # Model servers beside the first may what it may.
    models = {tuple("models" if name == "serving" else name for name in edge) for edge in EDGES if "serving" in edge}
    assert len(elements) == len(let)
    assert let == EDGES | models


def test_model_servers_beside_the_first_have_addresses_that_the_firewall_takes_for_model_servers() -> None:
    prefix = rendered("__host_models_mac_prefix")
    assert prefix == MODELS_MAC_PREFIX
    assert f"define models = {prefix}:00:00:00-{prefix}:ff:ff:ff\n" in rendered("__host_firewall")
    wine, second, inside_out = address("serving-wine"), address("serving-wine_2"), address("serving-wine", egress=True)
    assert {text[:8] for text in (wine, second, inside_out)} == {prefix}
    assert wine[:-2] == second[:-2] == inside_out[:-2] != address("serving-iris")[:-2]
    assert (wine[-2:], second[-2:], inside_out[-2:]) == ("01", "02", "81")
    # Both prefixes, and no other, are one under the mask by which the firewall knows a container.
    (mask,) = re.findall(r"define prefix = (\w\w):ff:ff:00:00:00", rendered("__host_firewall"))
    assert int(prefix[:2], 16) & int(mask, 16) == int(MAC_PREFIX[:2], 16)


def test_prometheus_reaches_all_that_it_asks() -> None:
    text = (ROLES / "prometheus" / "templates" / "prometheus.yml.j2").read_text()
    asked = {(name, int(port)) for name, port in re.findall(r'"(\w+):(\d+)"', text) if name != "localhost"}
    # Its replicas have names that the template makes.
    asked |= {("serving", int(port)) for port in re.findall(r"'\$', ':(\d+)'", text)}
    assert asked == {(destination, port) for source, destination, port in EDGES if source == "prometheus"}


def test_docs_security_has_the_same_table() -> None:
    section = (ROOT / "docs" / "security.md").read_text().partition("## Which service reaches which")[2]
    told = {
        (source, destination, int(port))
        for source, cell in TABLE.findall(section.partition("\n## ")[0])
        for destination, port in re.findall(r"`(\w+):(\d+)`", cell)
    }
    assert told == EDGES


def test_docs_security_names_everybody_with_a_way_out() -> None:
    section = (ROOT / "docs" / "security.md").read_text().partition("\n## A way out")[2]
    having = {
        path.parts[-3]
        for path in ROLES.glob("*/tasks/*.yml")
        if re.search(r"^    egress:", path.read_text(), flags=re.MULTILINE)
    }
    assert {name for name, _ in TABLE.findall(section.partition("\n## ")[0])} == having | {"training"}
