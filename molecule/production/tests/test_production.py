"""What inventories/production promises: PostgreSQL, only nginx public, no default password, secrets from a vault."""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path
from typing import Any

from conftest import INVENTORY, containers, healthy_services, run_playbook
from mlflow.tracking import MlflowClient
from testinfra.host import Host

SERVICES = {
    *("postgres", "mlflow", "serving", "nginx"),
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


def test_mlflow_is_on_postgresql(host: Host, ui_url: str) -> None:
    client = MlflowClient(ui_url)
    run = client.create_run(client.create_experiment("production"))
    query = f"select experiment_id from runs where run_uuid = '{run.info.run_id}'"
    command = f'docker exec mlops-postgres psql --host=/tmp --username=postgres --tuples-only -c "{query}" mlflow'
    assert host.check_output(command).strip() == run.info.experiment_id


def test_a_default_password_is_refused_by_name() -> None:
    result = run_playbook("site.yml", "--extra-vars", "backup_password=changeme")
    assert result.status != 0
    assert "backup_password: it is a well-known default" in result.output


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
