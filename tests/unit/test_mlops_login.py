"""Which of MLflow's requests need a role, told by MLflow's own routes; accounts and roles are those of the test."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from flask import Response
from role_programs import loaded
from werkzeug.datastructures import Authorization

# It protects the forms of MLflow's pages, which are not asked here; only MLflow's image has it.
FORMS = ModuleType("flask_wtf.csrf")
FORMS.CSRFProtect = object  # type: ignore[attr-defined]

with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    # MLflow's own, at its import.
    warnings.simplefilter("ignore")
    patch.setitem(sys.modules, "flask_wtf", ModuleType("flask_wtf"))
    patch.setitem(sys.modules, "flask_wtf.csrf", FORMS)
    import mlflow.server
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
    from mlflow.server import auth

ALIAS = "registered-models/alias"
GRACE = Authorization("basic", {"username": "grace", "password": "good"})


@pytest.fixture(scope="module")
def login() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_CRYPTO_KEK_PASSPHRASE", "of the environment")
        with patch.context() as container:
            container.setattr(Path, "read_text", lambda path, **_: f"of {path}\n")
            module = loaded("mlflow", "mlops_login")
        yield module


class Accounts:
    """In the place of MLflow's store: one account, and what is asked of it."""

    def __init__(self) -> None:
        self.roles: list[str] = []
        self.is_admin = False
        self.asked: list[str] = []

    def get_user(self, name: str) -> Any:
        self.asked.append(name)
        return SimpleNamespace(id=7, is_admin=self.is_admin)

    def list_user_roles(self, user: int) -> list[Any]:
        assert user == 7
        return [SimpleNamespace(name=role) for role in self.roles]


@pytest.fixture
def accounts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accounts]:
    found = Accounts()
    monkeypatch.setattr(auth, "store", found)
    monkeypatch.setattr(auth, "authenticate_request_basic_auth", lambda: GRACE)
    monkeypatch.setenv("MLOPS_RELEASE_ALIASES", "champion,live")
    return found


def asks(login: ModuleType, method: str, path: str, **message: str) -> Any:
    """What is answered to a request of the registry's API, on both of its addresses: the same."""
    answers = []
    for api in ("api", "ajax-api"):
        with mlflow.server.app.test_request_context(f"/{api}/2.0/mlflow/{path}", method=method, json=message):
            answers.append(login.authenticate())
    first, second = ((one.status_code, one.json) if isinstance(one, Response) else one for one in answers)
    assert first == second
    return answers[0]


NEEDS_A_RELEASER = [
    ("POST", ALIAS, {"name": "m", "alias": "champion", "version": "1"}),
    ("POST", ALIAS, {"name": "m", "alias": "live", "version": "1"}),
    ("DELETE", ALIAS, {"name": "m", "alias": "champion"}),
    ("DELETE", "registered-models/delete", {"name": "m"}),
    ("POST", "registered-models/rename", {"name": "m", "new_name": "n"}),
    ("DELETE", "model-versions/delete", {"name": "m", "version": "1"}),
    ("POST", "model-versions/transition-stage", {"name": "m", "version": "1", "stage": "Production"}),
]
NEEDS_A_CREATOR = [
    ("POST", "experiments/create", {"name": "e"}),
    ("POST", "registered-models/create", {"name": "m"}),
]
NEEDS_NOTHING = [
    ("POST", ALIAS, {"name": "m", "alias": "challenger", "version": "1"}),
    ("POST", "runs/create", {"experiment_id": "1"}),
    ("GET", "registered-models/get", {}),
    ("POST", "model-versions/create", {"name": "m"}),
]


@pytest.mark.usefixtures("login")
def test_mlflow_has_its_keys_from_files() -> None:
    assert mlflow.server.app.secret_key == "of /run/secrets/mlflow_session_key"
    assert os.environ["MLFLOW_CRYPTO_KEK_PASSPHRASE"] == "of /run/secrets/mlflow_encryption_passphrase"


@pytest.mark.parametrize("role", ["reader", "writer", "training"])
@pytest.mark.parametrize(("method", "path", "message"), NEEDS_A_RELEASER)
def test_only_a_releaser_moves_an_alias_of_releases_or_takes_it_away(
    login: ModuleType, accounts: Accounts, role: str, method: str, path: str, message: dict[str, str]
) -> None:
    accounts.roles = [role]
    answer = asks(login, method, path, **message)
    assert answer.status_code == 403
    assert answer.json["error_code"] == "PERMISSION_DENIED"
    assert "grace may not" in answer.json["message"]
    assert "releaser or training-gate" in answer.json["message"]


@pytest.mark.parametrize("role", ["releaser", "training-gate"])
@pytest.mark.parametrize(("method", "path", "message"), NEEDS_A_RELEASER + NEEDS_A_CREATOR)
def test_a_releaser_may(
    login: ModuleType, accounts: Accounts, role: str, method: str, path: str, message: dict[str, str]
) -> None:
    accounts.roles = ["reader", role]
    assert asks(login, method, path, **message) == GRACE


@pytest.mark.parametrize(("method", "path", "message"), NEEDS_A_CREATOR)
def test_who_creates_experiments_and_models_needs_a_role_that_may(
    login: ModuleType, accounts: Accounts, method: str, path: str, message: dict[str, str]
) -> None:
    assert asks(login, method, path, **message).status_code == 403
    accounts.roles = ["reader"]
    assert "create experiments and models" in asks(login, method, path, **message).json["message"]
    for role in ("writer", "training"):
        accounts.roles = [role]
        assert asks(login, method, path, **message) == GRACE


@pytest.mark.parametrize(("method", "path", "message"), NEEDS_A_RELEASER + NEEDS_A_CREATOR)
def test_an_administrator_needs_no_role(
    login: ModuleType, accounts: Accounts, method: str, path: str, message: dict[str, str]
) -> None:
    accounts.is_admin = True
    assert asks(login, method, path, **message) == GRACE


@pytest.mark.parametrize(("method", "path", "message"), NEEDS_NOTHING)
def test_all_else_is_left_to_mlflows_permissions_without_a_look_at_the_accounts(
    login: ModuleType, accounts: Accounts, method: str, path: str, message: dict[str, str]
) -> None:
    assert asks(login, method, path, **message) == GRACE
    assert accounts.asked == []


@pytest.mark.parametrize(("method", "path", "message"), NEEDS_A_RELEASER[:1] + NEEDS_NOTHING[:1])
def test_who_does_not_log_in_is_answered_as_mlflow_does(
    login: ModuleType,
    accounts: Accounts,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    path: str,
    message: dict[str, str],
) -> None:
    monkeypatch.setattr(auth, "authenticate_request_basic_auth", lambda: Response(status=401))
    assert asks(login, method, path, **message).status_code == 401
    assert accounts.asked == []


def test_prometheus_may_read_metrics_with_any_account(login: ModuleType) -> None:
    assert login.auth.BEFORE_REQUEST_VALIDATORS["/metrics", "GET"] is auth._allow_authenticated


def test_who_asks_for_the_champion_of_a_model_that_is_not_made_yet_hears_that(
    login: ModuleType, accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts.roles = ["training"]

    def missing(name: str) -> None:
        raise MlflowException(f"no model {name}", RESOURCE_DOES_NOT_EXIST)

    monkeypatch.setattr(
        login.handlers, "_get_model_registry_store", lambda: SimpleNamespace(get_registered_model=missing)
    )
    with mlflow.server.app.test_request_context(f"/api/2.0/mlflow/{ALIAS}?name=m&alias=champion"):
        answer = login.authenticate()
    assert answer.status_code == 404
    assert (answer.json["error_code"], answer.json["message"]) == ("RESOURCE_DOES_NOT_EXIST", "no model m")
    there = SimpleNamespace(get_registered_model=lambda _: None)
    monkeypatch.setattr(login.handlers, "_get_model_registry_store", lambda: there)
    with mlflow.server.app.test_request_context(f"/api/2.0/mlflow/{ALIAS}?name=m&alias=champion"):
        assert login.authenticate() is GRACE
