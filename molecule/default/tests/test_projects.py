"""A project of one's own is trained on the host, recorded, and promoted only when it is better; also on a schedule."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PlaybookRun, run_playbook
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from testinfra.host import Host

Site = Callable[..., PlaybookRun]
MODEL = "project-test"
DATA = "/var/lib/project-test"
# Not while this is tested.
SCHEDULE = "*-01-01 00:00:00"
TIMER = "mlops-training.timer"
METRICS = "/var/lib/mlops/metrics/mlops_training_schedule.prom"

TRAIN = """\
import argparse, pathlib, mlflow
from sklearn.dummy import DummyRegressor

parser = argparse.ArgumentParser()
parser.add_argument("--rmse", type=float)
arguments = parser.parse_args()
table = pathlib.Path("/data/table.csv")
try:
    table.write_text("changed")
except OSError:
    mlflow.set_tag("data", table.read_text())
mlflow.log_metric("rmse", arguments.rmse)
mlflow.sklearn.log_model(DummyRegressor().fit([[0]], [0]), name="model", pip_requirements=["scikit-learn"])
"""
MLPROJECT = """\
name: project-test
entry_points:
  main:
    parameters: {rmse: float}
    command: python train.py --rmse {rmse}
"""


@pytest.fixture(scope="module")
def variables(host: Host, tmp_path_factory: pytest.TempPathFactory, mlflow_url: str) -> Iterator[dict[str, object]]:
    """A project in a git repository on the controller, and data on the host; afterwards the host has neither."""
    repository = tmp_path_factory.mktemp("repository")
    (repository / "train.py").write_text(TRAIN)
    (repository / "MLproject").write_text(MLPROJECT)
    git = ["git", "-C", str(repository), "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "A project"], ["tag", "v1"]):
        subprocess.run([*git, *arguments], check=True, timeout=60)
    commit = subprocess.run([*git, "rev-parse", "v1"], check=True, timeout=60, capture_output=True, text=True)
    host.check_output(f"mkdir -p {DATA} && printf 'a table' > {DATA}/table.csv")
    yield {
        "training_project": f"file://{repository}#v1",
        "training_experiment_name": MODEL,
        "training_model_name": MODEL,
        "training_data": DATA,
        "training_gate": {"metric": "rmse", "direction": "minimize"},
        "training_schedule": SCHEDULE,
        "commit": commit.stdout.strip(),
    }
    host.run(f"systemctl disable --now {TIMER}; rm -f /etc/systemd/system/mlops-training.* {METRICS}")
    host.run(f"systemctl daemon-reload; rm -rf {DATA} /var/lib/mlops/projects/{MODEL}")
    client = MlflowClient(mlflow_url)
    if client.search_registered_models(f"name = '{MODEL}'"):
        client.delete_registered_model(MODEL)
    if experiment := client.get_experiment_by_name(MODEL):
        client.delete_experiment(experiment.experiment_id)


def scheduled_metrics(host: Host) -> dict[str, float]:
    lines = host.check_output(f"cat {METRICS}").splitlines()
    return {name.removeprefix("mlops_training_schedule_"): float(value) for name, value in map(str.split, lines)}


def train(variables: dict[str, object], rmse: object) -> PlaybookRun:
    wanted = json.dumps({**variables, "training_parameters": {"rmse": rmse}})
    return run_playbook("site.yml", "--tags", "train", "--extra-vars", wanted)


def test_what_is_better_is_promoted_and_what_was_run_is_recorded(variables: dict[str, object], mlflow_url: str) -> None:
    client = MlflowClient(mlflow_url)
    for rmse, champion in ((2, "1"), (3, "1")):
        result = train(variables, rmse)
        assert result.status == 0, result.output
        assert str(client.get_model_version_by_alias(MODEL, "champion").version) == champion
    worse = client.get_model_version_by_alias(MODEL, "challenger")
    assert worse.tags["promotion"] == "does not beat the champion, version 1: rmse 3 against 2"
    run = client.get_run(worse.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"rmse": "3"}
    assert run.data.tags["mlflow.source.git.commit"] == variables["commit"]
    assert run.data.tags["mlflow.source.name"] == variables["training_project"]
    assert run.data.tags["data"] == "a table", "the data are there, and are not written to"


def test_the_schedule_makes_the_same_run_and_tells_what_came_of_it(
    host: Host, variables: dict[str, object], mlflow_url: str
) -> None:
    assert host.check_output(f"systemctl is-active {TIMER}") == "active"
    assert SCHEDULE in host.check_output(f"systemctl show --property=TimersCalendar {TIMER}")
    assert scheduled_metrics(host).keys() == {"due_timestamp_seconds"}, "it has made no run yet"
    began = float(host.check_output("date +%s"))
    host.check_output("systemctl start mlops-training")
    client = MlflowClient(mlflow_url)
    version = client.get_model_version_by_alias(MODEL, "challenger")
    assert str(version.version) == "3"
    run = client.get_run(version.run_id)
    assert run.data.params == {"rmse": "3"}
    assert run.data.tags["mlflow.source.git.commit"] == variables["commit"]
    metrics = scheduled_metrics(host)
    assert metrics["last_run_success"] == 1
    assert metrics["last_run_timestamp_seconds"] >= began
    assert metrics["due_timestamp_seconds"] > metrics["last_run_timestamp_seconds"]
    status = run_playbook("playbooks/status.yml")
    assert status.status == 0, status.output
    assert re.search(r"Training is due \d{4}-01-01 .*; the schedule's last run ended well", status.output), (
        status.output
    )


def test_a_wrong_parameter_fails_the_run_with_its_reason(
    host: Host, variables: dict[str, object], mlflow_url: str
) -> None:
    reason = "training_parameters: rmse is 'much': the project wants a number"
    result = train(variables, "much")
    assert result.status != 0
    assert reason in result.output
    assert host.run("systemctl start mlops-training").rc != 0
    assert reason in host.check_output("journalctl --unit mlops-training --since -5min --output cat")
    assert scheduled_metrics(host)["last_run_success"] == 0
    status = run_playbook("playbooks/status.yml")
    assert "mlops-training.service has failed (exit-code): journalctl -u mlops-training.service" in status.output
    with pytest.raises(MlflowException):
        MlflowClient(mlflow_url).get_model_version(MODEL, "4")


def test_the_next_run_of_any_tag_brings_the_schedule_back_and_removes_one_that_is_no_longer_set(
    host: Host, site: Site, variables: dict[str, object]
) -> None:
    # As `make down` leaves it.
    host.check_output(f"systemctl disable --now {TIMER}")
    site("--tags", "monitoring", "--extra-vars", json.dumps({**variables, "training_parameters": {"rmse": 3}}))
    assert host.check_output(f"systemctl is-active {TIMER}") == "active"
    assert host.check_output(f"systemctl is-enabled {TIMER}") == "enabled"
    site("--tags", "monitoring")
    assert host.run("systemctl list-unit-files 'mlops-training.*' --no-legend").stdout == ""
    assert host.run("systemctl list-timers 'mlops-training*' --all --no-legend").stdout == ""
    assert host.run("systemctl list-units 'mlops-training*' --failed --no-legend").stdout == ""
    assert not host.file(METRICS).exists


def test_of_a_directory_it_is_refused_before_anything_is_changed(failing_site: Site, tmp_path: Path) -> None:
    (tmp_path / "MLproject").write_text(MLPROJECT)
    wanted = json.dumps({"training_project": str(tmp_path), "training_parameters": {"rsme": 1}})
    result = failing_site("--tags", "train", "--extra-vars", wanted)
    assert "Nothing was changed." in result.output
    assert "no parameter 'rsme', did you mean 'rmse'" in result.output
