"""With which credentials the registry is asked: those that MLflow's own client takes, from where it takes them."""

from __future__ import annotations

import base64
import configparser
from pathlib import Path

import pytest
from model_server.supervisor import registry

VARIABLES = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without credentials."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write(home: Path, text: str) -> None:
    (home / ".mlflow").mkdir(exist_ok=True)
    (home / ".mlflow" / "credentials").write_text(text, encoding="utf-8")


def basic(pair: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


BOTH = "[mlflow]\nmlflow_tracking_username = serving\nmlflow_tracking_password = good\n"


@pytest.mark.parametrize(
    ("text", "name", "password"),
    [
        (BOTH, "serving", "good"),
        ("[mlflow]\nmlflow_tracking_username = serving\n", "serving", None),
        ("[mlflow]\nmlflow_tracking_username = grüße\nmlflow_tracking_password = pässe\n", "grüße", "pässe"),
        ("[mlflow]\nmlflow_tracking_username = a\nmlflow_tracking_password = b=c: d\n", "a", "b=c: d"),
        ("[another]\nmlflow_tracking_username = serving\n", None, None),
        ("", None, None),
    ],
)
def test_the_file_of_mlflows_client_is_read(home: Path, text: str, name: str | None, password: str | None) -> None:
    write(home, text)
    assert registry._credentials_file("mlflow_tracking_username") == name
    assert registry._credentials_file("mlflow_tracking_password") == password


def test_without_the_file_there_are_no_credentials() -> None:
    assert registry._credentials_file("mlflow_tracking_username") is None
    assert registry._authorization(None, None) == {}


@pytest.mark.parametrize("text", ["no section\n", "[mlflow]\nno value\n"])
def test_a_file_that_is_none_of_credentials_is_an_error(home: Path, text: str) -> None:
    write(home, text)
    with pytest.raises(configparser.Error):
        registry._credentials_file("mlflow_tracking_username")


def test_the_address_goes_before_variables_and_these_before_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(home, BOTH)
    assert registry._authorization(None, None) == basic("serving:good")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "from the environment")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert registry._authorization(None, None) == basic("from the environment:secret")
    assert registry._authorization("in the address", "too") == basic("in the address:too")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "a-token")
    assert registry._authorization("in the address", "too") == {"Authorization": "Bearer a-token"}
