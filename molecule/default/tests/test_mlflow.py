"""An MLflow client on the controller works with the appliance, on MLflow's own port and through nginx."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient


@pytest.mark.parametrize("entrance", ["mlflow_url", "ui_url"])
def test_a_run_with_an_artifact_is_logged_and_read_back(
    entrance: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    client = MlflowClient(request.getfixturevalue(entrance))
    experiment = client.get_experiment_by_name("client-test")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("client-test")
    run_id = client.create_run(experiment_id).info.run_id

    # Larger than any buffer on the way.
    artifact = tmp_path / "weights.bin"
    artifact.write_bytes(bytes(range(256)) * 20_000)
    client.log_metric(run_id, "loss", 0.25)
    client.log_param(run_id, "depth", 3)
    client.log_artifact(run_id, str(artifact))
    client.set_terminated(run_id)

    run = client.get_run(run_id)
    assert run.data.metrics == {"loss": 0.25}
    assert run.data.params == {"depth": "3"}
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), "clients need no access to the volume"
    (tmp_path / "back").mkdir()
    back = Path(client.download_artifacts(run_id, "weights.bin", str(tmp_path / "back")))
    assert back.read_bytes() == artifact.read_bytes()


def test_the_client_is_of_the_version_that_the_appliance_runs(mlflow_url: str) -> None:
    import requests

    assert requests.get(f"{mlflow_url}/version", timeout=10).text == mlflow.__version__
