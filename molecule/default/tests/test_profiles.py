"""A tag starts exactly the services of its profile; postgres has a module of its own, train another."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from conftest import PlaybookRun, containers, healthy_services, run_playbook
from testinfra.host import Host

Site = Callable[..., PlaybookRun]

DEV = {"mlflow", "node_exporter", "alertmanager", "prometheus", "grafana"}
SERVE = {"mlflow", "environments", "serving", "nginx"}
MONITORING = {"node_exporter", "nginx_exporter", "alertmanager", "prometheus", "grafana"}


@pytest.fixture(scope="module", autouse=True)
def all_services_afterwards() -> Iterator[None]:
    """Leave the host as the other tests want it."""
    yield
    result = run_playbook("site.yml", "--tags", "full")
    assert result.status == 0, result.output


@pytest.mark.parametrize(
    ("tags", "services"),
    [("dev", DEV), ("serve", SERVE), ("monitoring", MONITORING), ("dev,serve", DEV | SERVE)],
)
def test_tags_start_exactly_their_services(host: Host, site: Site, tags: str, services: set[str]) -> None:
    down = run_playbook("playbooks/down.yml")
    assert down.status == 0, down.output
    assert containers(host) == {}
    site("--tags", tags)
    assert healthy_services(host) == services
    assert set(containers(host)) == services
