"""Whole runs on small corpora, against a real MLflow store."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from codesearch import base, pipeline, tracking
from codesearch.pipeline import Result
from codesearch.settings import Settings, TrainingError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

# What MLflow and its dependencies warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")

QUERY = "Look up folders"


@pytest.fixture(scope="module")
def settings(tracking_uri: str, corpus_root: Path, base_root: Path) -> Settings:
    return Settings(tracking_uri, "experiment", "search", corpus_root, base_root)


@pytest.fixture(scope="module")
def first(settings: Settings) -> Result:
    return pipeline.run(settings)


@pytest.fixture(scope="module")
def second(settings: Settings, first: Result) -> Result:
    """The same run once more."""
    assert first.version == "1"
    return pipeline.run(settings)


def run_of(result: Result) -> mlflow.entities.Run:
    return MlflowClient().get_run(result.run_id)


def children(result: Result) -> dict[str, mlflow.entities.Run]:
    query = f"tags.mlflow.parentRunId = '{result.run_id}'"
    runs = mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")
    return {run.info.run_name: run for run in runs}


def model_path(version: str, directory: Path) -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/search/{version}", dst_path=str(directory)))


def test_the_first_model_is_challenger_and_champion(first: Result) -> None:
    version = MlflowClient().get_model_version("search", first.version)
    assert first.promoted
    assert sorted(version.aliases) == ["challenger", "champion"]
    assert version.tags["promotion"] == "there was no champion"
    assert version.run_id == first.run_id


def test_a_tie_becomes_challenger_only(first: Result, second: Result) -> None:
    client = MlflowClient()
    assert str(client.get_model_version_by_alias("search", "champion").version) == first.version
    assert str(client.get_model_version_by_alias("search", "challenger").version) == second.version
    assert (
        client.get_model_version("search", second.version)
        .tags["promotion"]
        .startswith("does not beat champion version 1")
    )


def test_one_seed_gives_the_same_figures_and_the_same_bytes(first: Result, second: Result, tmp_path: Path) -> None:
    """Also when the base model of the first run is reused instead of trained."""
    assert first.quality == second.quality
    contents = []
    for result in (first, second):
        path = model_path(result.version, tmp_path / result.version) / "artifacts"
        contents.append({str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 8


def test_the_base_model_is_trained_once_for_the_same_inputs(first: Result, second: Result, settings: Settings) -> None:
    assert children(first).keys() == {"pretraining", "fine-tuning"}
    assert children(second).keys() == {"fine-tuning"}
    assert run_of(second).data.tags["base_reused"] == "true"
    (version,) = MlflowClient().search_model_versions("name = 'search_base'")
    assert version.tags["inputs_digest"] == base.inputs_digest(settings)
    assert run_of(second).data.params["base_version"] == str(version.version) == "1"


def test_other_inputs_ask_for_another_base_model(settings: Settings, tmp_path: Path) -> None:
    digest = base.inputs_digest(settings)
    assert digest != base.inputs_digest(replace(settings, seed=1))
    assert digest != base.inputs_digest(replace(settings, pretraining_epochs=9))
    assert digest != base.inputs_digest(replace(settings, base_corpus=tmp_path))
    assert digest == base.inputs_digest(replace(settings, epochs=9))


def test_runs_hold_what_people_look_for(first: Result) -> None:
    client = MlflowClient()
    parent, runs = run_of(first), children(first)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["seed"] == "0"
    assert parent.data.tags["code_digest"] == tracking.code_digest()
    assert parent.inputs is not None
    assert [(i.dataset.name, len(i.dataset.digest)) for i in parent.inputs.dataset_inputs] == [("corpus0", 32)]
    assert len(client.get_metric_history(runs["fine-tuning"].info.run_id, "loss")) == 8
    assert len(client.get_metric_history(runs["pretraining"].info.run_id, "loss")) == 3
    for system in ("bm25", "bm25_weighted", "base", "fine_tuned", "hybrid"):
        for measure in ("mrr", "recall_at_1", "recall_at_5", "recall_at_10"):
            low, value, high = (parent.data.metrics[f"test_{system}_{measure}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1
    assert parent.data.metrics["test_hybrid_mrr_over_bm25"] > 1
    artifacts = {a.path for a in client.list_artifacts(first.run_id)} | {
        a.path for a in client.list_artifacts(first.run_id, "evaluation")
    }
    assert artifacts >= {"model_card.md", "evaluation/ranks.png", "evaluation/quality.png", "evaluation/quality.json"}


def test_the_card_tells_what_the_model_does_badly(first: Result) -> None:
    card = mlflow.artifacts.load_text(f"runs:/{first.run_id}/model_card.md")
    for heading in ("## What it was trained on", "## How good it is", "## What it does badly", "## Limits"):
        assert heading in card
    assert "Pre-trained on 216 documented functions of *base0*" in card


def test_the_model_has_a_signature_an_example_and_its_requirements(first: Result, tmp_path: Path) -> None:
    path = model_path(first.version, tmp_path)
    model = mlflow.models.Model.load(path)
    assert model.signature is not None
    assert str(model.signature.params) == "['top_k': long (default: 5)]"
    assert model.signature.inputs.to_dict() == [{"type": "string", "required": True}]
    assert json.loads((path / "serving_input_example.json").read_text()) == {"inputs": pipeline.EXAMPLE}
    requirements = (path / "requirements.txt").read_text().split()
    # Arrays of one NumPy 2 are those of another: any model server's will do.
    assert requirements == [f"mlflow=={mlflow.__version__}", "numpy>=2"]
    assert model.metadata is not None
    assert model.metadata["example_predictions"] == mlflow.pyfunc.load_model(str(path)).predict(pipeline.EXAMPLE)


def test_the_drift_profile_is_a_distribution(first: Result, tmp_path: Path) -> None:
    model = mlflow.models.Model.load(model_path(first.version, tmp_path))
    assert model.metadata is not None
    profile = model.metadata["drift_profile"]
    assert profile.keys() == {"text_length", "unknown_token_rate", "top_score"}
    for bins in profile.values():
        assert bins["edges"] == sorted(set(bins["edges"]))
        assert len(bins["expected"]) == len(bins["edges"]) + 1
        assert sum(bins["expected"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "request_body",
    [
        {"inputs": [QUERY]},
        {"instances": [QUERY]},
        {"dataframe_split": {"columns": [0], "data": [[QUERY]]}},
        {"inputs": [QUERY], "params": {"top_k": 2}},
    ],
)
def test_all_json_shapes_are_answered_with_records(first: Result, request_body: dict[str, object]) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    model = mlflow.pyfunc.load_model(f"models:/search/{first.version}")
    response = invocations(json.dumps(request_body), "application/json", model, model.metadata.get_input_schema())
    (records,) = json.loads(response.response)["predictions"]
    assert len(records) == (2 if "params" in request_body else 5)
    assert records[0].keys() == {"function", "file", "line", "signature", "score"}
    assert records[0]["function"] == "find_directory"


def test_the_model_is_served_where_this_package_is_not_installed(first: Result, tmp_path: Path) -> None:
    path = model_path(first.version, tmp_path)
    program = (
        "import sys, mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model({str(path)!r})\n"
        f"print(model.predict([{QUERY!r}])[0][0]['function'], 'codesearch' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert result.stdout.split() == ["find_directory", "False"]


def test_the_model_observes_what_only_it_can_tell(first: Result) -> None:
    model = mlflow.pyfunc.load_model(f"models:/search/{first.version}").unwrap_python_model()
    assert model.observe(["find xyzzy"], [[]]) == {"unknown_token_rate": [0.5]}


def test_the_base_model_encodes_text(first: Result) -> None:
    assert first.version == "1"
    model = mlflow.pyfunc.load_model("models:/search_base/1")
    vector, nothing = model.predict([QUERY, "xyzzy"])
    assert sum(value * value for value in vector) == pytest.approx(1)
    assert not any(nothing)


@pytest.mark.usefixtures("first")
def test_a_model_that_is_to_be_signed_first_is_not_the_champion_yet(settings: Settings) -> None:
    result = pipeline.run(replace(settings, model_name="to-be-signed", promotion_alias="approved"))
    assert result.promoted
    version = MlflowClient().get_model_version("to-be-signed", result.version)
    assert sorted(version.aliases) == ["approved", "challenger"]


@pytest.mark.usefixtures("first")
def test_a_champion_without_a_test_split_stays(settings: Settings) -> None:
    settings = replace(settings, model_name="foreign")
    client = MlflowClient()
    client.create_registered_model("foreign")
    with mlflow.start_run() as run:
        mlflow.log_text("x", "model/MLmodel")
    version = client.create_model_version("foreign", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("foreign", "champion", version.version)

    result = pipeline.run(settings)

    assert not result.promoted
    assert result.reason.startswith("champion version 1 keeps no test split that can be read")


@pytest.mark.usefixtures("first")
def test_a_failure_while_registering_leaves_no_version(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("the server went away")

    before = {v.version for v in MlflowClient().search_model_versions("name = 'search'")}
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuse)
    with pytest.raises(TrainingError, match="the server went away"):
        pipeline.run(settings)
    assert {v.version for v in MlflowClient().search_model_versions("name = 'search'")} == before
    (last,) = mlflow.search_runs(
        experiment_names=["experiment"],
        filter_string="run_name = 'training'",
        order_by=["start_time DESC"],
        max_results=1,
        output_format="list",
    )
    assert last.info.status == "FAILED"


@pytest.mark.usefixtures("first")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the corpus is empty: no Python files in"),
        ({"notes.txt": "text"}, "the corpus is empty: no Python files in"),
        ({"module.py": "def f(): ...\ndef g(): ...\n"}, "no documented function among the 2 functions in"),
        ({"module.py": "def"}, "none of the 1 Python files in"),
        ({"module.py": 'def f():\n    """Do one single thing."""\n'}, "nothing to train on"),
    ],
)
def test_a_corpus_that_teaches_nothing_is_a_clear_error(
    settings: Settings, tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match=message):
        pipeline.run(replace(settings, corpus=tmp_path))


@pytest.mark.usefixtures("first")
def test_a_small_corpus_is_served_though_not_measured(settings: Settings, tmp_path: Path) -> None:
    for name in ("read", "write", "send", "parse", "sort"):
        (tmp_path / f"{name}.py").write_text(f'def {name}_it(x):\n    """Please {name} all of it."""\n    {name}(x)\n')
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe")

    result = pipeline.run(replace(settings, corpus=tmp_path, model_name="small"))

    assert result.promoted
    assert result.quality == {}
    skipped = mlflow.artifacts.load_text(f"runs:/{result.run_id}/training_skipped_files.txt")
    assert skipped == "broken.py: not UTF-8\n"
    assert run_of(result).data.metrics["training_skipped_files"] == 1


@pytest.mark.usefixtures("first")
def test_a_full_disk_is_a_clear_error(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/tmp/index")

    monkeypatch.setattr(pipeline, "write_index", full)
    with pytest.raises(TrainingError, match="No space left on device: '/tmp/index'"):
        pipeline.run(settings)
