"""What inventories/production promises: PostgreSQL, only nginx public, no default password, secrets from a vault."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import (
    INVENTORY,
    ROOT,
    containers,
    healthy_services,
    host_secrets,
    readable_secrets,
    run_playbook,
    wait_until,
)
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from testinfra.host import Host

SERVICES = {
    *("postgres", "mlflow", "environments", "serving", "nginx"),
    *("node_exporter", "nginx_exporter", "postgres_exporter", "prometheus", "grafana"),
}


def test_everything_runs(host: Host) -> None:
    assert healthy_services(host) == SERVICES


def test_only_nginx_is_public(host: Host) -> None:
    addresses = {
        (service, binding["HostIp"])
        for service, document in containers(host).items()
        for bindings in (document["HostConfig"]["PortBindings"] or {}).values()
        for binding in bindings
    }
    here = {(service, "127.0.0.1") for service in ("mlflow", "prometheus", "grafana")}
    assert addresses == {("nginx", "0.0.0.0"), *here}


def test_mlflow_is_on_postgresql(host: Host, ui_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MlflowException, match="401"):
        MlflowClient(ui_url).search_experiments()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", host.check_output("cat /etc/mlops/secrets/mlflow_admin_password"))
    client = MlflowClient(ui_url)
    run = client.create_run(client.create_experiment("production"))
    query = f"select experiment_id from runs where run_uuid = '{run.info.run_id}'"
    command = f'docker exec mlops-postgres psql --host=/tmp --username=postgres --tuples-only -c "{query}" mlflow'
    assert host.check_output(command).strip() == run.info.experiment_id


def test_the_host_installs_security_updates_by_itself(host: Host) -> None:
    periods = host.check_output("apt-config shell UPDATE APT::Periodic::Unattended-Upgrade")
    assert periods == "UPDATE='1'"
    assert host.service("apt-daily-upgrade.timer").is_enabled
    shown = host.check_output("unattended-upgrade --dry-run --debug 2>&1 | grep 'Allowed origins'")
    assert "Debian-Security" in shown
    assert host.check_output("apt-config shell REBOOT Unattended-Upgrade::Automatic-Reboot") in {"", "REBOOT='false'"}


def test_a_default_password_is_refused_by_name() -> None:
    result = run_playbook("site.yml", "--extra-vars", "backup_password=changeme")
    assert result.status != 0
    assert "backup_password: it is a well-known default" in result.output


def test_an_nginx_that_is_half_open_is_refused_with_all_that_it_lacks() -> None:
    result = run_playbook("site.yml", "--extra-vars", "nginx_exposed=true")
    assert result.status != 0
    for missing in ("nginx_tls_certificate", "nginx_allowed_networks"):
        assert missing in result.output, missing
    assert "mlflow_login" not in result.output, "the example has a login"
    assert "changed=0" in result.output


@dataclass(frozen=True)
class Exposed:
    """What clients know of an nginx that is open: addresses and the authority to trust; and what opening it printed."""

    ui: str
    api: str
    authority: Path
    key: str
    output: str


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]) -> Iterator[Exposed]:
    """Open nginx, with a certificate of files that ends soon, and close it afterwards."""
    directory = tmp_path_factory.mktemp("tls")
    spec = spec_from_file_location("own_certificate", ROOT / "plugins" / "action" / "own_certificate.py")
    assert spec
    assert spec.loader
    authority = module_from_spec(spec)
    spec.loader.exec_module(authority)
    # Signed for a year, ten days before its end.
    authority.provide(directory, "tls", ["localhost", "127.0.0.1"], datetime.now(UTC) - timedelta(days=355))
    variables = {
        "nginx_exposed": True,
        # Whoever comes by the ports of this machine has an address of its own making.
        "nginx_allowed_networks": ["0.0.0.0/0"],
        "nginx_tls_certificate": str(directory / "tls.crt"),
        "nginx_tls_key": str(directory / "tls.key"),
        "nginx_http_port": 80,
        "nginx_https_port": settings["local_host_ui_port"],
    }
    ui, api = (f"https://localhost:{settings[f'local_host_{name}_port']}" for name in ("ui", "api"))
    try:
        result = run_playbook("site.yml", "-vvv", "--diff", "--extra-vars", json.dumps(variables))
        assert result.status == 0, result.output
        yield Exposed(ui, api, directory / "ca.crt", (directory / "tls.key").read_text(), result.output)
    finally:
        result = run_playbook("site.yml")
    assert result.status == 0, result.output


def test_exposed_it_asks_everybody_who_they_are(host: Host, exposed: Exposed) -> None:
    made = run_playbook("playbooks/token.yml", "--extra-vars", "client=shop")
    token = made.output.partition("PLAY RECAP")[0].split()[-1]
    try:
        with requests.Session() as session:
            # Not the authorities that the environment names.
            session.trust_env, session.verify = False, str(exposed.authority)
            search = f"{exposed.ui}/api/2.0/mlflow/experiments/search?max_results=1"
            admin = ("admin", host.check_output("cat /etc/mlops/secrets/mlflow_admin_password"))
            assert session.get(search, timeout=10).status_code == 401
            assert session.get(search, timeout=10, auth=admin).status_code == 200
            assert session.get(f"{exposed.api}/version", timeout=10).status_code == 401
            bearer = {"Authorization": f"Bearer {token}"}
            assert session.get(f"{exposed.api}/version", timeout=10, headers=bearer).status_code == 200
            assert session.get(f"{exposed.api}/health", timeout=10).headers["Strict-Transport-Security"]
        assert token not in host.check_output("journalctl --no-pager --output=cat")
        alerts = "docker exec mlops-prometheus curl --silent http://127.0.0.1:9090/api/v1/alerts"
        wait_until(lambda: "CertificateEndsSoon" in host.check_output(alerts), 90, "its end is told of in time")
    finally:
        run_playbook("playbooks/revoke.yml", "--extra-vars", "client=shop")


def test_exposed_no_secret_is_readable(host: Host, exposed: Exposed) -> None:
    known = host_secrets(host) | {"the key of nginx": exposed.key}
    assert {"postgres_password", "mlflow_admin_password", "model_signing_key", "restic_password"} <= set(known)
    assert readable_secrets(host, known, run=exposed.output) == [], "[secret, its form, where it is readable]"


def test_exposed_its_tls_is_of_mozillas_intermediate_profile(exposed: Exposed) -> None:
    requirements = Path(__file__).parents[1] / "requirements-sslyze.txt"
    sslyze = ["uv", "run", "--no-project", "--isolated", "--with-requirements", str(requirements), "sslyze"]
    places = [url.removeprefix("https://") for url in (exposed.ui, exposed.api)]
    result = subprocess.run(
        [*sslyze, "--mozilla_config=intermediate", f"--certinfo_ca_file={exposed.authority}", *places],
        env={**os.environ, "UV_SYSTEM_CERTS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    for place in places:
        assert f"{place}: OK - Compliant." in result.stdout, result.stdout + result.stderr
    assert "VULNERABLE - " not in result.stdout, result.stdout


def test_secrets_come_from_ansible_vault(host: Host, tmp_path: Path, settings: dict[str, Any]) -> None:
    password, key = secrets.token_hex(16), tmp_path / "vault-password"
    key.write_text(secrets.token_hex(16))
    inventory = tmp_path / "inventory"
    (inventory / "group_vars" / "mlops").mkdir(parents=True)
    (inventory / "hosts.yml").write_text(f"mlops: {{hosts: {{{settings['local_host_name']}: }}}}\n")
    (inventory / "group_vars" / "mlops" / "backup.yml").write_text(
        'backup_repository: /var/backups/vaulted\nbackup_password: "{{ vault_backup_password }}"\n'
    )
    vault = inventory / "group_vars" / "mlops" / "vault.yml"
    vault.write_text(f"vault_backup_password: {password}\n")
    subprocess.run(["ansible-vault", "encrypt", "--vault-password-file", key, vault], check=True, capture_output=True)
    result = run_playbook(
        *("site.yml", "--tags", "dev", "--diff", "--inventory", str(inventory), "--vault-password-file", str(key))
    )
    assert result.status == 0, result.output
    assert password not in result.output
    assert host.file("/etc/mlops/secrets/restic_password").content_string.strip() == password
    assert host.file("/etc/mlops/secrets/restic_password").mode == 0o600
    back = run_playbook("site.yml", "--tags", "dev")
    assert back.status == 0, back.output


def test_the_example_is_what_was_provisioned() -> None:
    example = INVENTORY / "group_vars" / "mlops" / "example.yml"
    assert example.resolve().parts[-4:] == ("inventories", "production", "group_vars", "mlops.yml")
