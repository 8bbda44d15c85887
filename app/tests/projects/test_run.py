"""A project is run by MLflow itself: its source, commit, entry point and parameters are on its run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from example_projects import EXAMPLES, EXPERIMENT
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server import invocations
from projects.gate import register
from projects.mlproject import ProjectError
from projects.run import Settings, run, run_entry_point
from sklearn.dummy import DummyRegressor

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

Build = Callable[..., Settings]
APP = Path(__file__).parents[2]


def test_what_was_run_is_recorded(settings: Build, client: MlflowClient, project: Path) -> None:
    parameters = json.dumps({"figure": 1.5, "text": "two words; false"})
    commit = "0123456789012345678901234567890123456789"
    source = {"TRAINING_PROJECT_SOURCE": "https://example.org/figure", "TRAINING_PROJECT_COMMIT": commit}
    done = client.get_run(run(settings(TRAINING_PARAMETERS=parameters, **source)))
    assert done.info.status == "FINISHED"
    assert client.get_experiment(done.info.experiment_id).name == EXPERIMENT
    assert done.data.params == {"figure": "1.5", "text": "'two words; false'"}
    assert done.data.metrics == {"rmse": 1.5}
    assert done.data.tags["text"] == "two words; false"
    assert done.data.tags["mlflow.project.entryPoint"] == "main"
    assert done.data.tags["mlflow.source.type"] == "PROJECT"
    assert done.data.tags["mlflow.source.name"] == "https://example.org/figure"
    assert done.data.tags["mlflow.source.git.commit"] == commit
    assert not (project / "left-behind").exists(), "it runs in a copy"


def test_a_script_alone_is_run_with_its_parameters(settings: Build, client: MlflowClient, project: Path) -> None:
    (project / "MLproject").unlink()
    done = client.get_run(run(settings(TRAINING_PARAMETERS='{"figure": 3, "text": "a b"}')))
    assert done.data.metrics == {"rmse": 3}
    assert done.data.tags["text"] == "a b"
    assert done.data.params == {"figure": "3", "text": "'a b'"}


def test_an_entry_point_that_fails_fails_the_run(client: MlflowClient, project: Path) -> None:
    parent = client.create_run(client.get_experiment_by_name(EXPERIMENT).experiment_id).info.run_id
    with pytest.raises(ProjectError, match="fail failed"):
        run_entry_point(project, "fail", {}, EXPERIMENT, parent_run_id=parent)
    client.set_terminated(parent)
    (child,) = mlflow.search_runs(
        experiment_names=[EXPERIMENT], filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", output_format="list"
    )
    assert child.info.status == "FAILED"


def test_the_program_s_exit_status_says_how_it_ended(project: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(APP),
        "EXPERIMENT_NAME": EXPERIMENT,
        "MODEL_NAME": "figure",
        "TRAINING_PROJECT": str(project),
    }

    def program(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "projects.run"],
            env=environment | changes,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    done = program(TRAINING_PARAMETERS='{"figure": 1}')
    assert done.returncode == 0, done.stderr
    refused = program()
    assert refused.returncode == 1
    assert "training_parameters: figure is missing" in refused.stdout
    failed = program(TRAINING_ENTRY_POINT="fail")
    assert failed.returncode == 1
    assert "the run failed: fail failed" in failed.stdout


def test_a_run_that_is_stopped_is_marked_and_leaves_no_process(client: MlflowClient, project: Path) -> None:
    started = project.parent / "started"
    (project / "train.py").write_text(
        f"import os, pathlib, time\npathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(APP),
        "EXPERIMENT_NAME": EXPERIMENT,
        "MODEL_NAME": "figure",
        "TRAINING_PROJECT": str(project),
        "TRAINING_PARAMETERS": '{"figure": 1}',
    }
    with subprocess.Popen([sys.executable, "-m", "projects.run"], env=environment) as program:
        try:
            limit = time.monotonic() + 120
            while not (started.exists() and started.read_text()):
                assert time.monotonic() < limit
                assert program.poll() is None
                time.sleep(0.1)
            program.send_signal(signal.SIGTERM)
            assert program.wait(60) != 0
        finally:
            program.kill()
    last = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id], max_results=1)[0]
    assert last.info.status == "FAILED"
    assert not Path(f"/proc/{started.read_text()}").exists()


class TestGate:
    def logged(self, **metrics: float) -> str:
        """A run that logged a model."""
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run() as started:
            mlflow.log_metrics(metrics)
            mlflow.sklearn.log_model(DummyRegressor().fit([[0]], [0]), name="model", pip_requirements=[])
        return str(started.info.run_id)

    def test_only_a_better_model_becomes_the_champion(self, client: MlflowClient) -> None:
        def aliases(rmse: float, alias: str | None = "champion") -> dict[str, str]:
            register(self.logged(rmse=rmse), "gated", "rmse", "minimize", alias)
            return {name: str(of) for name, of in client.get_registered_model("gated").aliases.items()}

        def reason(version: str) -> str:
            return client.get_model_version("gated", version).tags["promotion"]

        assert aliases(2) == {"challenger": "1", "champion": "1"}
        assert reason("1") == "rmse 2, and there is no champion"
        assert aliases(3) == {"challenger": "2", "champion": "1"}
        assert reason("2") == "does not beat the champion, version 1: rmse 3 against 2"
        assert aliases(2) == {"challenger": "3", "champion": "1"}, "a tie"
        assert aliases(1) == {"challenger": "4", "champion": "4"}
        assert reason("4") == "beats the champion, version 1: rmse 1 against 2"
        # Where somebody signs it first, and where others promote.
        assert aliases(0.5, "approved") == {"challenger": "5", "champion": "4", "approved": "5"}
        assert aliases(0.1, None) == {"challenger": "6", "champion": "4", "approved": "5"}

    def test_more_may_be_better(self, client: MlflowClient) -> None:
        for accuracy in (0.1, 0.2):
            register(self.logged(accuracy=accuracy), "more", "accuracy", "maximize", "champion")
        assert str(client.get_model_version_by_alias("more", "champion").version) == "2"

    def test_a_run_s_model_is_registered_once(self) -> None:
        run_id = self.logged(rmse=1)
        assert [register(run_id, "once", "rmse", "minimize", None) for _ in range(2)] == ["1", "1"]

    @pytest.mark.parametrize("figure", ["nan", "inf"])
    def test_what_is_no_number_is_not_registered(self, client: MlflowClient, figure: str) -> None:
        with pytest.raises(ProjectError, match="no number as rmse"):
            register(self.logged(rmse=float(figure)), "no-number", "rmse", "minimize", "champion")
        assert not client.search_registered_models("name = 'no-number'")

    def test_a_metric_that_is_not_logged_is_named_beside_those_that_are(self) -> None:
        with pytest.raises(ProjectError, match="no number as loss, by which it is compared, but rmse"):
            register(self.logged(rmse=1), "no-metric", "loss", "minimize", "champion")

    def test_a_run_without_a_model_is_refused(self, client: MlflowClient) -> None:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        assert experiment is not None
        with pytest.raises(ProjectError, match="logged no model"):
            register(client.create_run(experiment.experiment_id).info.run_id, "none", "rmse", "minimize", None)

    def test_a_direction_that_is_none_is_refused(self, settings: Build) -> None:
        with pytest.raises(ProjectError, match=r"training_gate\.direction"):
            settings(TRAINING_GATE='{"metric": "rmse", "direction": "down"}')


class TestExamples:
    @pytest.mark.parametrize("name", ["wine", "boosting"])
    def test_they_are_short(self, name: str) -> None:
        assert len((EXAMPLES / name / "train.py").read_text().splitlines()) <= 60

    @pytest.mark.parametrize(
        ("name", "metric", "parameters"),
        [("wine", "test_log_loss", {}), ("boosting", "rmse", {"rows": 2000, "trees": 25})],
    )
    def test_they_are_trained_gated_and_served(
        self,
        settings: Build,
        client: MlflowClient,
        tmp_path: Path,
        name: str,
        metric: str,
        parameters: dict[str, int],
    ) -> None:
        if name == "boosting":
            pytest.importorskip("xgboost")
        gate = json.dumps({"metric": metric, "direction": "minimize"})
        changes = {"TRAINING_PROJECT": str(EXAMPLES / name), "TRAINING_PARAMETERS": json.dumps(parameters)}
        run(settings(MODEL_NAME=name, TRAINING_GATE=gate, **changes))
        assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
        path = Path(mlflow.artifacts.download_artifacts(f"models:/{name}@champion", dst_path=str(tmp_path / "model")))
        model = mlflow.pyfunc.load_model(str(path))
        body = (path / "serving_input_example.json").read_text()
        response = invocations(body, "application/json", model, model.metadata.get_input_schema())
        assert len(json.loads(response.response)["predictions"]) == 2
        if name == "wine":
            profile = model.metadata.metadata["drift_profile"]
            assert set(profile) == {f"input:{column}" for column in model.metadata.get_input_schema().input_names()}
            assert all(sum(bins["expected"]) == pytest.approx(1) for bins in profile.values())
