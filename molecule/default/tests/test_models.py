"""Several models, each with a model server of its own: found by name, listed, and no harm to one another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from conftest import PlaybookRun, container_ids, healthy_services, run_playbook, steady_client, wait_until
from testinfra.host import Host

# MLflow warns about its own type hints.
pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = [
    {"name": "code-search"},
    {"name": "Model B"},
    {"name": "model-c", "workers": 1, "preload_model": True, "version": "1", "memory": "600m"},
]
QUESTION = {"inputs": ["parse json"]}
MORE = {"inputs": ["more"]}

# It takes memory without end when it is asked for more.
HOG = """\
import mlflow


class Hog(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]) -> list[str]:
        kept = []
        while "more" in model_input:
            kept.append(b"x" * 10_000_000)
        return model_input


mlflow.models.set_model(Hog())
"""


def serve(*models: dict[str, Any], registered: bool = False) -> PlaybookRun:
    """Have these models served, and all that are registered too."""
    settings = {
        "serving_models": models,
        "serving_registered_models": registered,
        # Tests of one address.
        "nginx_api_rate": 10000,
        "nginx_api_burst": 10000,
    }
    result = run_playbook("site.yml", "--tags", "serve", "--extra-vars", json.dumps(settings))
    assert result.status == 0, result.output
    return result


def invoke(api_url: str, model: str, body: object = QUESTION) -> requests.Response:
    """What a model says to a question."""
    return requests.post(f"{api_url}/models/{model}/invocations", json=body, timeout=70)


def log_hog(mlflow_url: str, code: Path, name: str) -> None:
    """Log and register it, as its users would."""
    mlflow.set_tracking_uri(mlflow_url)
    mlflow.set_experiment("models")
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=code,
            registered_model_name=name,
            pip_requirements=["pandas"],
            input_example=["q"],
        )


def await_model(api_url: str, model: str) -> None:
    """Wait until a model is served."""
    ready = f"{api_url}/models/{model}/ready"
    wait_until(lambda: requests.get(ready, timeout=10).status_code == 200, 90, f"{model} is served")


@pytest.fixture(scope="module", autouse=True)
def registered(mlflow_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have a copy of the code search model and one that takes all memory; afterwards serve the one model again."""
    result = run_playbook("site.yml", "--tags", "serve,train", "--extra-vars", "training_only_when_missing=true")
    assert result.status == 0, result.output
    api = f"{mlflow_url}/api/2.0/mlflow"
    champion = {"name": "code-search", "alias": "champion"}
    version = requests.get(f"{api}/registered-models/alias", params=champion, timeout=30).json()["model_version"]
    copy, hog = (str(model["name"]) for model in MODELS[1:])
    code = tmp_path_factory.mktemp("hog") / "hog.py"
    code.write_text(HOG)
    try:
        for path, body in (
            ("registered-models/create", {"name": copy}),
            ("model-versions/create", {"name": copy, "source": f"models:/code-search/{version['version']}"}),
            ("registered-models/alias", {"name": copy, "alias": "champion", "version": "1"}),
        ):
            requests.post(f"{api}/{path}", json=body, timeout=30).raise_for_status()
        log_hog(mlflow_url, code, hog)
        yield
    finally:
        result = run_playbook("site.yml")
        for name in (copy, hog):
            requests.delete(f"{api}/registered-models/delete", json={"name": name}, timeout=30)
    assert result.status == 0, result.output


def test_one_more_restarts_nothing_fails_no_request_and_answers_at_its_name(host: Host, api_url: str) -> None:
    serve(registered=True)
    names = [model["name"] for model in requests.get(f"{api_url}/models", timeout=10).json()["models"]]
    assert names[0] == "code-search"
    assert "Model B" in names
    assert "model-c" not in names, "it has no alias"
    before = container_ids(host)
    with steady_client(api_url) as failed:
        serve(*MODELS)
    assert failed == []
    after = container_ids(host)
    for service in ("serving", "serving-model-b", "nginx"):
        assert after[service] == before[service]
    as_served = invoke(api_url, "code-search").json()
    for model, answer in (("Model B", as_served), ("model-c", {"predictions": QUESTION["inputs"]})):
        await_model(api_url, model)
        assert invoke(api_url, model).json() == answer
        assert requests.get(f"{api_url}/models/{model}", timeout=10).json()["name"] == model


# As all others here, so that it keeps its place among them.
@pytest.mark.usefixtures("host")
def test_each_speaks_the_open_inference_protocol_at_its_name(api_url: str) -> None:
    model = f"{api_url}/v2/models/model-c"
    assert requests.get(f"{model}/ready", timeout=10).status_code == 200
    (tensor,) = requests.get(model, timeout=10).json()["inputs"]
    asked = {"name": tensor["name"], "datatype": tensor["datatype"], "shape": [2], "data": ["parse", "json"]}
    answer = requests.post(f"{model}/infer", json={"inputs": [asked]}, timeout=30)
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["data"], answer.json()["model_version"]) == (["parse", "json"], "1")


@pytest.mark.usefixtures("host")
def test_all_are_listed_and_an_unknown_one_is_told_as_json(api_url: str) -> None:
    listed = requests.get(f"{api_url}/models", timeout=10).json()["models"]
    assert [(model["name"], model["ready"]) for model in listed] == [(model["name"], True) for model in MODELS]
    for path in ("/models/nobody/invocations", "/models/model-c/metrics", "/v2/models/nobody/infer", "/.model/0"):
        answer = requests.get(f"{api_url}{path}", timeout=10)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "NOT_FOUND"), path


def test_one_that_its_memory_limit_kills_again_and_again_harms_no_other(host: Host, api_url: str) -> None:
    began = int(host.check_output("date +%s"))
    with steady_client(api_url) as failed, steady_client(f"{api_url}/models/Model B") as failed_of_another:
        for _ in range(3):
            await_model(api_url, "model-c")
            assert invoke(api_url, "model-c", MORE).status_code == 502
        await_model(api_url, "model-c")
    assert failed == failed_of_another == []
    said = host.check_output(f"journalctl --unit=mlops-serving-model-c --since=@{began} --output=cat")
    assert said.count("out of memory") >= 3, f"its own unit says why:\n{said}"


def test_one_that_does_not_run_is_listed_as_such_and_the_others_answer(host: Host, api_url: str) -> None:
    host.check_output("systemctl stop mlops-serving-model-c")
    listed = requests.get(f"{api_url}/models", timeout=10).json()["models"]
    assert [model["ready"] for model in listed] == [True, True, False]
    assert invoke(api_url, "model-c").status_code == 502
    assert invoke(api_url, "Model B").status_code == 200


def test_one_that_left_the_list_goes_and_its_volume_stays(host: Host, api_url: str) -> None:
    serve(*MODELS[:2])
    assert not host.file("/etc/systemd/system/mlops-serving-model-c.service").exists
    assert "serving-model-c" not in healthy_services(host)
    assert "mlops_model_artifacts-model-c" in host.check_output("docker volume ls --quiet").split()
    assert invoke(api_url, "model-c").status_code == 404
    assert invoke(api_url, "Model B").status_code == 200
    host.check_output("docker volume rm mlops_model_artifacts-model-c")
