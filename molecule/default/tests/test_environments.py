"""A model that asks for packages which the model server's image does not have is served all the same."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

import mlflow
import numpy as np
import pytest
import requests
from conftest import wait_until
from sklearn.linear_model import LinearRegression
from testinfra.host import Host

# MLflow warns about its own type hints.
pytestmark = pytest.mark.filterwarnings("ignore")
NAME = "code-search"
INPUTS = [[1.0, 2.0], [3.0, 5.0]]


class Registered:
    """The appliance's registered model, to which versions are added."""

    def __init__(self, mlflow_url: str, api_url: str) -> None:
        self.client = mlflow.MlflowClient(mlflow_url)
        self._api_url = api_url
        self.mlflow_url = mlflow_url

    def add(self, slope: float, **options: Any) -> tuple[str, list[float]]:
        """Log a scikit-learn model as its users do; its version, and what it answers where it was logged."""
        mlflow.set_tracking_uri(self.mlflow_url)
        mlflow.set_experiment("environments")
        inputs = np.array(INPUTS)
        model = LinearRegression().fit(inputs, slope * inputs.sum(axis=1))
        with mlflow.start_run():
            info = mlflow.sklearn.log_model(
                model, name="model", registered_model_name=NAME, input_example=inputs, **options
            )
        expected = mlflow.pyfunc.load_model(info.model_uri).predict(inputs)
        return str(info.registered_model_version), [float(value) for value in expected]

    def point_to(self, version: str) -> float:
        """Move the alias, and return the seconds until that version answers."""
        self.client.set_registered_model_alias(NAME, "champion", version)
        return wait_until(lambda: self.served()["version"] == version, 300, f"version {version} is served")

    def told(self, version: str) -> dict[str, Any]:
        """What ``GET /model`` answers of a version that is served; the former answers some last requests beside it."""
        told: list[dict[str, Any]] = []

        def is_told() -> bool:
            told.append(self.served())
            return bool(told[-1]["version"] == version)

        wait_until(is_told, 60, f"version {version} tells of itself")
        return told[-1]

    def answers(self, version: str, body: Any) -> Any:
        """The predictions of a version that is served."""
        answered: list[requests.Response] = []

        def is_answered() -> bool:
            answered.append(requests.post(f"{self._api_url}/invocations", json=body, timeout=30))
            return answered[-1].headers["X-Model-Version"] == version

        wait_until(is_answered, 60, f"version {version} answers")
        return answered[-1].json()["predictions"]

    def served(self) -> dict[str, Any]:
        """What ``GET /model`` answers."""
        answer = requests.get(f"{self._api_url}/model", timeout=30)
        answer.raise_for_status()
        return dict(answer.json())


@pytest.fixture
def registered(mlflow_url: str, api_url: str) -> Iterator[Registered]:
    """The champion serves before and after, and the versions of the test are gone."""
    model = Registered(mlflow_url, api_url)
    former = model.client.get_model_version_by_alias(NAME, "champion").version
    known = {found.version for found in model.client.search_model_versions(f"name='{NAME}'")}
    yield model
    model.point_to(str(former))
    for found in model.client.search_model_versions(f"name='{NAME}'"):
        if found.version not in known:
            model.client.delete_model_version(NAME, found.version)


def test_a_scikit_learn_model_brings_its_packages(host: Host, registered: Registered) -> None:
    version, expected = registered.add(2.0)
    new = registered.point_to(version)
    served = registered.told(version)
    environment = served["environment"]["digest"]
    assert host.file(f"/var/lib/docker/volumes/mlops_environments/_data/{environment}/bin/python").exists
    assert served["python"]["logged_with"] == platform.python_version()
    assert registered.answers(version, {"inputs": INPUTS}) == pytest.approx(expected)

    same_requirements, _ = registered.add(3.0)
    known = registered.point_to(same_requirements)
    assert registered.told(same_requirements)["environment"]["digest"] == environment
    print(f"environment new: {new:.1f} s; the same requirements again: {known:.1f} s")

    wrong, _ = registered.add(4.0, pip_requirements=["scikit-learn==99.0"])
    registered.client.set_registered_model_alias(NAME, "champion", wrong)
    said = "there is no version of scikit-learn==99.0"
    wait_until(lambda: said in str(registered.served()["rejected"]), 120, "the version is rejected")
    assert registered.served()["version"] == same_requirements


def test_a_started_server_needs_neither_registry_nor_index(host: Host, registered: Registered) -> None:
    version, _ = registered.add(2.0)
    registered.point_to(version)
    host.check_output("systemctl stop mlops-environments")
    try:
        host.check_output("systemctl restart mlops-serving")
        wait_until(lambda: _serves(registered, version), 120, "the version is served")
    finally:
        host.check_output("systemctl start mlops-environments")


def _serves(registered: Registered, version: str) -> bool:
    try:
        return bool(registered.served()["version"] == version)
    except requests.HTTPError:
        return False
