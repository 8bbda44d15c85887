"""The example of bringing one's own training: trained, registered and served as any other model."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.pyfunc.scoring_server import invocations

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_wine.py"

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def train() -> None:
    runpy.run_path(str(EXAMPLE))["main"]()


@pytest.fixture(autouse=True)
def _contract(tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MODEL_NAME", "our-wine")
    monkeypatch.setenv("EXPERIMENT_NAME", "our-experiment")


@pytest.fixture
def champion(tmp_path: Path) -> Path:
    client = MlflowClient()
    if not client.search_registered_models("name = 'our-wine'"):
        train()
    return Path(mlflow.artifacts.download_artifacts("models:/our-wine/1", dst_path=str(tmp_path)))


def test_it_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 80


@pytest.mark.usefixtures("champion")
def test_a_tie_does_not_move_the_champion() -> None:
    train()
    registered = MlflowClient().get_registered_model("our-wine")
    aliases = {alias: str(version) for alias, version in registered.aliases.items()}
    assert aliases == {"champion": "1", "challenger": "2"}


def test_its_model_is_served(champion: Path) -> None:
    model = mlflow.pyfunc.load_model(str(champion))
    body = (champion / "serving_input_example.json").read_text()
    response = invocations(body, "application/json", model, model.metadata.get_input_schema())

    predictions = json.loads(response.response)["predictions"]
    assert len(predictions) == 2
    assert set(predictions) <= {0, 1, 2}


def test_its_drift_profile_covers_every_column(champion: Path) -> None:
    model = mlflow.models.Model.load(champion)
    assert model.signature is not None
    assert model.metadata is not None
    profile = model.metadata["drift_profile"]
    assert set(profile) == {f"input:{name}" for name in model.signature.inputs.input_names()}
    assert all(sum(bins["expected"]) == pytest.approx(1) for bins in profile.values())
