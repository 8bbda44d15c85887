"""A project of one's own is trained on the host, recorded, and promoted only when it is better."""

from __future__ import annotations

import json
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
        "commit": commit.stdout.strip(),
    }
    host.run(f"rm -rf {DATA} /var/lib/mlops/projects/{MODEL}")
    client = MlflowClient(mlflow_url)
    if client.search_registered_models(f"name = '{MODEL}'"):
        client.delete_registered_model(MODEL)
    if experiment := client.get_experiment_by_name(MODEL):
        client.delete_experiment(experiment.experiment_id)


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


def test_a_wrong_parameter_fails_the_run_with_its_reason(variables: dict[str, object], mlflow_url: str) -> None:
    result = train(variables, "much")
    assert result.status != 0
    assert "training_parameters: rmse is 'much': the project wants a number" in result.output
    with pytest.raises(MlflowException):
        MlflowClient(mlflow_url).get_model_version(MODEL, "3")


def test_of_a_directory_it_is_refused_before_anything_is_changed(failing_site: Site, tmp_path: Path) -> None:
    (tmp_path / "MLproject").write_text(MLPROJECT)
    wanted = json.dumps({"training_project": str(tmp_path), "training_parameters": {"rsme": 1}})
    result = failing_site("--tags", "train", "--extra-vars", wanted)
    assert "Nothing was changed." in result.output
    assert "no parameter 'rsme', did you mean 'rmse'" in result.output
