"""A run changes what it was asked to change, undoes what does not work, and refuses what cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SERVICES, PlaybookRun, container_ids, containers, healthy_services, run_playbook
from testinfra.host import Host

Site = Callable[..., PlaybookRun]


class TestChange:
    def test_a_run_without_a_change_keeps_every_container(self, host: Host, site: Site) -> None:
        before = container_ids(host)
        result = site()
        assert result.changed == 0, result.output
        assert container_ids(host) == before
        print(f"a run that changes nothing took {result.seconds:.1f} s")

    def test_one_setting_of_one_service_restarts_that_unit_and_no_other(self, host: Host, site: Site) -> None:
        before = container_ids(host)
        assert site("--extra-vars", "nginx_memory=160m").changed == 1
        during = container_ids(host)
        assert {service for service in SERVICES if during[service] != before[service]} == {"nginx"}
        assert containers(host)["nginx"]["HostConfig"]["Memory"] == 160 * 2**20
        assert site().changed == 1, "back to the inventory's value"

    def test_a_tag_touches_no_service_outside_its_profile(self, host: Host, site: Site) -> None:
        before = container_ids(host)
        site("--tags", "dev", "--extra-vars", "nginx_memory=160m")
        assert container_ids(host) == before

    def test_check_mode_tells_the_change_and_makes_none(self, host: Host, site: Site) -> None:
        before = container_ids(host)
        result = site("--check", "--diff", "--extra-vars", "serving_memory=700m")
        assert result.changed == 1, result.output
        assert "--memory=700m" in result.output
        assert container_ids(host) == before


class TestUndo:
    def test_a_service_that_cannot_become_healthy_is_undone_and_the_next_run_repairs(
        self, host: Host, site: Site, failing_site: Site
    ) -> None:
        # Too little memory to start: the kernel kills it again and again.
        result = failing_site("--extra-vars", "mlflow_memory=40m mlflow_start_timeout=20")
        assert "mlops-mlflow.service did not become healthy" in result.output
        assert "The former service is running again." in result.output
        assert "Its last log lines:" in result.output
        assert healthy_services(host) == set(SERVICES)
        assert containers(host)["mlflow"]["HostConfig"]["Memory"] == 2**30
        assert site().changed == 0, "what runs is what the inventory says: nothing is left to repair"

    def test_a_configuration_that_nginx_refuses_is_never_applied(self, host: Host, failing_site: Site) -> None:
        before = container_ids(host)
        result = failing_site("--extra-vars", "nginx_api_max_body=plenty")
        assert "`nginx -t` refuses the new configuration" in result.output
        assert container_ids(host) == before


class TestRefusal:
    """Wrong input is named, with the way out, before anything is changed."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--tags", "sreve"], "tag 'sreve': no such profile, did you mean 'serve'; the profiles are:"),
            (["--extra-vars", "mlflow_prot=5001"], "mlflow_prot: no such setting, did you mean 'mlflow_port'"),
            (["--extra-vars", "mlflow_workers=many"], "mlflow_workers: 'many' is refused"),
            (
                ["--extra-vars", '{"mlops_ca_certificates": ["/no/such/ca.pem"]}'],
                "mlops_ca_certificates: '/no/such/ca.pem' is no file on the controller",
            ),
            (
                ["--extra-vars", '{"preflight_disk_free_mb": {"/var/lib": 1000000000}}'],
                "preflight_disk_free_mb: /var/lib has",
            ),
            (["--extra-vars", "mlflow_port=22"], "mlflow_port: port 22 of the host is in use by another program"),
            (["--extra-vars", "nginx_api_port=70000"], "nginx_api_port: 70000 is no port"),
            (
                ["--extra-vars", '{"postgres_password": "two\\nlines"}'],
                "postgres_password: it begins or ends with a space, or holds a line break",
            ),
            (["--extra-vars", "grafana_admin_password=xyz"], "grafana_admin_password: Grafana refuses a password"),
            (["--extra-vars", "training_schedule=nightly"], "training_schedule: 'nightly' is no time to systemd"),
        ],
        ids=[
            *("tag", "misspelt", "mistyped", "missing CA file", "no disk", "port in use", "no port"),
            *("password of two lines", "password that Grafana refuses", "no time"),
        ],
    )
    def test_wrong_input_changes_nothing(
        self, host: Host, failing_site: Site, arguments: list[str], message: str
    ) -> None:
        before = container_ids(host)
        result = failing_site(*arguments)
        assert message in " ".join(result.output.split())
        assert "Nothing was changed." in result.output
        assert container_ids(host) == before

    def test_two_settings_with_one_port_are_named(self, settings: dict[str, object], failing_site: Site) -> None:
        port = settings["local_host_api_port"]
        result = failing_site("--extra-vars", f"mlflow_port={port}")
        assert f"port {port} is already claimed by" in " ".join(result.output.split())

    def test_an_inventory_without_the_group_is_an_error(self, tmp_path: Path) -> None:
        inventory = tmp_path / "hosts.yml"
        inventory.write_text("all: {hosts: {some-host: {}}}\n")
        result = run_playbook("site.yml", inventory=inventory)
        assert result.status != 0
        assert "The inventory has no host in group mlops" in " ".join(result.output.split())

    def test_a_profile_whose_group_is_empty_is_an_error(self, tmp_path: Path) -> None:
        inventory = tmp_path / "hosts.yml"
        inventory.write_text("all: {children: {mlops: {hosts: {some-host: {}}}}}\n")
        result = run_playbook("site.yml", "--tags", "serve", inventory=inventory)
        assert result.status != 0
        assert "no host of the inventory is in group 'serving'" in " ".join(result.output.split())
