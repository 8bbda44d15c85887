"""A search: real trials, carried out by real Dask workers, remembered by a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from example_projects import EXPERIMENT
from mlflow import MlflowClient
from mlflow.entities import Run
from projects.mlproject import ProjectError
from projects.search_settings import Search

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

# Beside load a process takes long to start.
LIMIT_SECONDS = 600

PROJECT = """\
name: quadratic
entry_points:
  main:
    parameters:
      x: float
      kind: string
    command: python train.py --x {x} --kind {kind}
"""
# Each execution leaves a line; the kind decides how it goes.
TRAIN = """\
import argparse, os, pathlib, time, mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
parser.add_argument("--kind")
arguments = parser.parse_args()
with mlflow.start_run() as run:
    with open(os.environ["EXECUTIONS"], "a") as file:
        file.write(f"{run.info.run_id} {os.environ['OMP_NUM_THREADS']}\\n")
    while arguments.kind == "slow" and not pathlib.Path(os.environ["EXECUTIONS"] + ".go").exists():
        time.sleep(0.1)
    if arguments.kind == "bad":
        raise SystemExit("no such kind of wine")
    mlflow.log_metric("loss", (arguments.x - 0.3) ** 2)
    mlflow.pyfunc.log_model(name="model", python_model=Echo(), pip_requirements=[])
"""
X = {"x": {"low": 0.0, "high": 1.0}}

Begin = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def executions(tmp_path: Path) -> Path:
    return tmp_path / "executions"


@pytest.fixture
def begin(tmp_path: Path, tracking_uri: str, executions: Path) -> Iterator[Begin]:
    """Begin a search of its own process group, as a container is, and end what is left of it."""
    project = tmp_path / "quadratic"
    project.mkdir()
    (project / "MLproject").write_text(PROJECT)
    (project / "train.py").write_text(TRAIN)
    begun: list[subprocess.Popen[str]] = []

    def start(model: str, kinds: list[str], **search: object) -> subprocess.Popen[str]:
        parameters = {**X, "kind": {"choices": kinds}}
        process = subprocess.Popen(
            [sys.executable, "-m", "projects.search"],
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "MLFLOW_TRACKING_URI": tracking_uri,
                "EXPERIMENT_NAME": EXPERIMENT,
                "MODEL_NAME": model,
                "TRAINING_PROJECT": str(project),
                "TRAINING_SEARCH": json.dumps({"parameters": parameters, "metric": "loss", "parallel": 2, **search}),
                "EXECUTIONS": str(executions),
            },
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def children(client: MlflowClient, model: str) -> tuple[Run, list[Run]]:
    """Return a search's run and those of its trials, by the version that it registered."""
    [version] = client.search_model_versions(f"name = '{model}'")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    parent = client.get_run(client.get_run(str(version.run_id)).data.tags["mlflow.parentRunId"])
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, list(found)


def test_the_best_is_found_registered_and_shown(begin: Begin, client: MlflowClient, executions: Path) -> None:
    search = begin("quadratic", ["good", "bad"], trials=8)
    said, _ = search.communicate(timeout=LIMIT_SECONDS)
    assert search.returncode == 0, said

    parent, trials = children(client, "quadratic")
    complete = {run.info.run_id: run.data.metrics["loss"] for run in trials if run.info.status == "FINISHED"}
    failed = [run for run in trials if run.info.status == "FAILED"]
    assert len(complete) + len(failed) == 8
    assert {run.data.params["kind"] for run in failed} <= {"bad"}
    assert all((float(run.data.params["x"]) - 0.3) ** 2 == complete[run.info.run_id]
               for run in trials if run.info.run_id in complete)  # fmt: skip
    assert [line.split()[1] for line in executions.read_text().splitlines()] == ["1"] * 8

    champion = client.get_model_version_by_alias("quadratic", "champion")
    assert complete[str(champion.run_id)] == min(complete.values()) == parent.data.metrics["loss"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id, "search")}
    assert {"search/optimization_history.png", "search/slices.png", "search/trials.csv"} <= files


def test_a_search_that_was_killed_goes_on_without_repeating(
    begin: Begin, client: MlflowClient, executions: Path
) -> None:
    def lines() -> list[str]:
        return executions.read_text().splitlines() if executions.exists() else []

    killed = begin("killed", ["slow"], trials=3)
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(lines()) < 2:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.2)
    # Two are under way, and die with the search.
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    cut_off = [line.split()[0] for line in lines()]
    executions.with_name("executions.go").touch()

    again = begin("killed", ["slow"], trials=3)
    said, _ = again.communicate(timeout=LIMIT_SECONDS)
    assert again.returncode == 0, said
    _, trials = children(client, "killed")
    repeats = {run.data.tags.get("search.repeats") for run in trials}
    assert repeats - {None} == set(cut_off)
    assert sorted(run.info.status for run in trials) == ["FINISHED"] * 3 + ["KILLED"] * 2
    executed = [line.split()[0] for line in lines()]
    assert len(executed) == len(set(executed)) == 5

    # All is done: once more changes nothing.
    said, _ = begin("killed", ["slow"], trials=3).communicate(timeout=LIMIT_SECONDS)
    assert len(lines()) == 5, said
    assert len(client.search_model_versions("name = 'killed'")) == 1


def test_a_search_of_which_every_trial_fails_says_why(begin: Begin) -> None:
    search = begin("failing", ["bad"], trials=2)
    said, _ = search.communicate(timeout=LIMIT_SECONDS)
    assert search.returncode == 1
    assert "no such kind of wine" in said
    assert "none of 2 trials came to an end" in said


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"parameters": {}}, "training_search.parameters must name what is varied"),
        ({"metric": ""}, "training_search.metric must name a metric"),
        ({"trials": 0}, "training_search.trials must be a whole number from 1, not 0"),
        ({"trails": 5}, "training_search has no trails: it may have direction"),
        ({"direction": "up"}, "training_search.direction must be minimize or maximize, not 'up'"),
        ({"parameters": {"x": {"low": 2, "high": 1}}}, "training_search.parameters.x.low is 2, more than its high, 1"),
        ({"parameters": {"x": {"low": 0, "high": 1, "log": True}}}, "with log: true it must be more than 0"),
        ({"parameters": {"x": {"low": 0}}}, "training_search.parameters.x.high must be a number, not None"),
        ({"parameters": {"x": {"choices": []}}}, "training_search.parameters.x.choices must be a list of values"),
        ({"parameters": {"x": {"choices": [1, "1"]}}}, "has a value twice"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ProjectError) as refused:
        Search.parse(json.dumps({"parameters": X, "metric": "loss", **wrong}))
    assert reason in str(refused.value)
