from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import mlflow
import pytest
from example_projects import EXPERIMENT, MLPROJECT, TRAIN
from mlflow import MlflowClient
from projects.run import Settings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints as it is imported; in a test that is an error
    import mlflow.pyfunc.scoring_server


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real store, which the processes of projects write to as well."""
    directory = tmp_path_factory.mktemp("mlflow")
    former = mlflow.get_tracking_uri()
    uri = f"sqlite:///{directory}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment(EXPERIMENT, artifact_location=str(directory / "artifacts"))
    yield uri
    mlflow.set_tracking_uri(former)


@pytest.fixture(autouse=True)
def _contract(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture
def client(tracking_uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    directory = tmp_path / "figure"
    directory.mkdir()
    (directory / "MLproject").write_text(MLPROJECT)
    (directory / "train.py").write_text(TRAIN)
    return directory


@pytest.fixture
def settings(project: Path, tracking_uri: str) -> Callable[..., Settings]:
    """Settings as the training container gives them, with changes."""

    def build(**changes: str) -> Settings:
        environment: Mapping[str, str] = {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "EXPERIMENT_NAME": EXPERIMENT,
            "MODEL_NAME": "figure",
            "TRAINING_PROJECT": str(project),
            "TRAINING_PARAMETERS": '{"figure": 2}',
            **changes,
        }
        return Settings.from_environment(environment)

    return build


@pytest.fixture
def interpreter() -> Path:
    return Path(sys.executable)
