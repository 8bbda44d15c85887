from __future__ import annotations

from pathlib import Path

import pytest
from codesearch.settings import Settings, TrainingError

SERVER = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}


def test_all_but_the_server_has_a_default() -> None:
    settings = Settings.from_environment(SERVER)
    assert settings == Settings("http://mlflow:5000")
    assert settings.model_name == settings.experiment_name == "code-search"
    assert settings.corpus_name == "standard library"
    assert (settings.corpus_root / "argparse.py").is_file()
    assert (settings.base_corpus_root / "numpy").is_dir()


def test_everything_can_be_set(tmp_path: Path) -> None:
    settings = Settings.from_environment(
        SERVER
        | {
            "EXPERIMENT_NAME": "team",
            "MODEL_NAME": "team-search",
            "TRAINING_CORPUS": str(tmp_path),
            "TRAINING_BASE_CORPUS": str(tmp_path),
            "TRAINING_SEED": "7",
            "TRAINING_PRETRAINING_EPOCHS": "1",
            "TRAINING_EPOCHS": "2",
            "TRAINING_MAY_PROMOTE": "false",
            "TRAINING_PROMOTION_ALIAS": "approved",
        }
    )
    assert settings == Settings(
        "http://mlflow:5000", "team", "team-search", tmp_path, tmp_path, 7, 1, 2, False, "approved"
    )
    assert settings.corpus_name == tmp_path.name


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    names = (
        "EXPERIMENT_NAME",
        "MODEL_NAME",
        "TRAINING_CORPUS",
        "TRAINING_SEED",
        "TRAINING_EPOCHS",
        "TRAINING_PROMOTION_ALIAS",
    )
    assert Settings.from_environment(SERVER | dict.fromkeys(names, "")) == Settings.from_environment(SERVER)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MLFLOW_TRACKING_URI", "", "MLFLOW_TRACKING_URI is not set"),
        ("TRAINING_CORPUS", "/nowhere", "TRAINING_CORPUS: /nowhere is not a directory"),
        ("TRAINING_SEED", "-1", "TRAINING_SEED must be a whole number from 0, not '-1'"),
        ("TRAINING_EPOCHS", "0", "TRAINING_EPOCHS must be a whole number from 1, not '0'"),
        (
            "TRAINING_PRETRAINING_EPOCHS",
            "many",
            "TRAINING_PRETRAINING_EPOCHS must be a whole number from 1, not 'many'",
        ),
    ],
)
def test_a_wrong_value_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        Settings.from_environment(SERVER | {variable: value})
