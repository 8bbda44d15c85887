"""A backup, the loss of everything, a restore: the same runs, models, aliases and bytes as before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import healthy_services, run_playbook
from mlflow.tracking import MlflowClient
from testinfra.host import Host

EXPERIMENT = MODEL = "backup-test"
PROGRAM = "/usr/local/lib/mlops/appliance-backup"
PASSWORD = "/etc/mlops/secrets/restic_password"


def log_something(client: MlflowClient, directory: Path) -> None:
    """Two runs with histories, parameters, tags and artifacts, and a model with two versions and aliases."""
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = found.experiment_id if found else client.create_experiment(EXPERIMENT)
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL)
    for number in range(2):
        run_id = client.create_run(experiment, tags={"kind": "kept"}).info.run_id
        for step in range(5):
            client.log_metric(run_id, "loss", 1 / (1 + step + number), step=step, timestamp=1_700_000_000_000 + step)
        client.log_param(run_id, "depth", number)
        artifact = directory / "weights.bin"
        artifact.write_bytes(bytes([number]) * 70_000 + bytes(range(256)))
        client.log_artifact(run_id, str(artifact), "model")
        client.set_terminated(run_id)
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        version = client.create_model_version(MODEL, source, run_id)
        client.set_registered_model_alias(MODEL, ("challenger", "champion")[number], version.version)


def everything(client: MlflowClient, directory: Path) -> dict[str, Any]:
    """What a client can see of it."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = {}
    for run in client.search_runs([experiment.experiment_id]):
        run_id = run.info.run_id
        target = directory / run_id
        target.mkdir(parents=True)
        runs[run_id] = {
            "data": (run.info.status, run.data.params, run.data.tags, run.info.start_time),
            "loss": [(item.step, item.value) for item in client.get_metric_history(run_id, "loss")],
            "bytes": Path(client.download_artifacts(run_id, "model/weights.bin", str(target))).read_bytes(),
        }
    model = client.get_registered_model(MODEL)
    versions = {item.version: (item.run_id, item.source) for item in client.search_model_versions(f"name='{MODEL}'")}
    return {"runs": runs, "aliases": model.aliases, "versions": versions}


def metrics(host: Host) -> dict[str, float]:
    lines = host.check_output("cat /var/lib/mlops/metrics/mlops_backup.prom").splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines)}


@pytest.fixture(scope="module")
def backup() -> str:
    """What a backup said that was taken with the playbook."""
    result = run_playbook("playbooks/backup.yml")
    assert result.status == 0, result.output
    return result.output


@pytest.fixture
def other_password(host: Host) -> Iterator[None]:
    """The repository's password is another one than it was made with."""
    host.check_output(f"cp --preserve {PASSWORD} {PASSWORD}.kept && echo wrong > {PASSWORD}")
    yield
    host.check_output(f"mv {PASSWORD}.kept {PASSWORD}")


@pytest.mark.usefixtures("backup")
def test_a_backup_is_a_checked_snapshot_whose_age_and_size_are_metrics(host: Host) -> None:
    found = metrics(host)
    assert found["mlops_backup_check_success"] == 1
    assert found["mlops_backup_size_bytes"] > 10_000
    age = int(host.check_output("date +%s")) - found["mlops_backup_last_success_timestamp_seconds"]
    assert 0 <= age < 300


def test_it_is_taken_every_night_and_kept_from_others(host: Host) -> None:
    assert host.check_output("systemctl is-active mlops-backup.timer") == "active"
    assert host.check_output("systemctl is-enabled mlops-backup.timer") == "enabled"
    assert "02:30:00" in host.check_output("systemctl show --property=TimersCalendar mlops-backup.timer")
    for path, mode in (("/var/backups/mlops", 0o700), (PASSWORD, 0o600)):
        assert host.file(path).mode == mode


@pytest.mark.usefixtures("backup")
def test_of_a_day_that_is_past_one_snapshot_stays(host: Host) -> None:
    restic = f"RESTIC_REPOSITORY=/var/backups/mlops RESTIC_PASSWORD_FILE={PASSWORD} restic"
    name = json.loads(host.check_output("cat /etc/mlops/backup/backup.json"))["host"]
    times = [f"2026-01-02 {hour}:00:00" for hour in ("08", "09", "10")]
    for time in times:
        host.check_output(f"{restic} backup --tag mlops --host {name} --time '{time}' /etc/hostname")
    host.check_output(f"{PROGRAM} backup")
    snapshots = [item["time"] for item in json.loads(host.check_output(f"{restic} snapshots --json"))]
    assert metrics(host)["mlops_backup_snapshots"] == len(snapshots)
    # The oldest of all stands for the periods that are not full yet.
    assert [item[11:13] for item in snapshots if item.startswith("2026-01-02")] == ["08", "10"]


@pytest.mark.usefixtures("backup", "other_password")
def test_another_password_is_refused_by_name(host: Host) -> None:
    for command in ("backup", "look", "restore"):
        result = host.run(f"{PROGRAM} {command}")
        assert result.rc == 1
        assert "restic_password does not open the repository /var/backups/mlops: set backup_password" in result.stderr
    assert "mlflow" in healthy_services(host)


@pytest.mark.usefixtures("backup")
def test_a_restore_does_not_overwrite_what_runs(host: Host) -> None:
    result = host.run(f"{PROGRAM} restore")
    assert result.rc == 1
    assert "services run: stop them first" in result.stderr


@pytest.mark.usefixtures("backup")
def test_a_restore_over_data_has_to_be_confirmed(host: Host) -> None:
    result = run_playbook("playbooks/restore.yml")
    assert result.status != 0
    assert "Nothing was changed. The host has data." in re.sub(r"\s+", " ", result.output)
    assert "mlflow" in healthy_services(host)


def test_down_volumes_has_to_be_confirmed(host: Host) -> None:
    result = run_playbook("playbooks/down_volumes.yml")
    assert result.status != 0
    assert "Nothing was removed" in result.output
    assert "mlflow" in healthy_services(host)


def test_what_was_lost_comes_back_the_same(host: Host, mlflow_url: str, tmp_path: Path) -> None:
    client = MlflowClient(mlflow_url)
    log_something(client, tmp_path)
    before = everything(client, tmp_path / "before")
    running = healthy_services(host)
    assert run_playbook("playbooks/backup.yml").status == 0

    lost = run_playbook("playbooks/down_volumes.yml", "--extra-vars", "confirm=yes")
    assert lost.status == 0, lost.output
    assert host.check_output("docker volume ls --quiet --filter name=^mlops_") == ""
    assert host.check_output("docker ps --all --quiet --filter label=mlops.unit") == ""

    restored = run_playbook("playbooks/restore.yml")
    assert restored.status == 0, restored.output
    assert healthy_services(host) == running
    assert everything(client, tmp_path / "after") == before
    # And it goes on from there.
    log_something(client, tmp_path)
