"""Accounts and roles become those of the inventory, by as few calls as there are differences."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import load_plugin
from role_variables import rendered

accounts = load_plugin("modules/mlflow_accounts.py")

ROLE = {"id": 7, "name": "reader", "permissions": []}
GRANT = {"id": 3, "resource_type": "experiment", "resource_pattern": "*", "permission": "READ"}
GRACE = {"name": "grace", "password": "good", "roles": ["reader"], "admin": False}


class Server:
    """An MLflow that notes what it is asked to change."""

    def __init__(self, roles: list[dict[str, Any]], users: list[dict[str, Any]]) -> None:
        self.roles, self.users = roles, users
        self.calls: list[str] = []

    def ask(self, method: str, call: str, **arguments: Any) -> dict[str, Any]:
        if method != "GET":
            self.calls.append(call)
            return {"role": {**ROLE, **{key: arguments[key] for key in ("name",) if key in arguments}}}
        return {"roles": self.roles, "users": self.users}

    def lets_in(self, _user: str, password: str) -> bool:
        return password == "good"


def user(name: str, *roles: str, admin: bool = False) -> dict[str, Any]:
    return {"username": name, "is_admin": admin, "roles": [{"name": role} for role in roles]}


def made_so(server: Server, wanted: list[dict[str, Any]], *, check_mode: bool = False) -> list[str]:
    found = accounts.Accounts(server, check_mode=check_mode)
    found.provide_roles({"reader": {("experiment", "*"): "READ"}})
    found.provide(wanted, keep="admin")
    return list(found.changes)


ALL = [{**ROLE, "permissions": [GRANT]}]


@pytest.mark.parametrize(
    ("roles", "users", "changes", "calls"),
    [
        (ALL, [user("admin"), user("grace", "reader", "__user_4__", "by hand")], [], []),
        (ALL, [user("grace", "reader"), user("mallory")], ["account mallory removed"], ["users/delete"]),
        (ALL, [], ["account grace", "roles of grace"], ["users/create", "roles/assign"]),
        (ALL, [user("grace", "reader", admin=True)], ["rank of grace"], ["users/update-admin"]),
        ([ROLE], [user("grace", "reader")], ["permissions of role reader"], ["roles/permissions/add"]),
        (
            [{**ROLE, "permissions": [{**GRANT, "permission": "EDIT"}]}],
            [user("grace", "reader")],
            ["permissions of role reader"],
            ["roles/permissions/remove", "roles/permissions/add"],
        ),
    ],
)
def test_what_differs_is_changed_and_nothing_else(
    roles: list[dict[str, Any]], users: list[dict[str, Any]], changes: list[str], calls: list[str]
) -> None:
    server = Server(roles, users)
    assert made_so(server, [GRACE]) == changes
    assert server.calls == calls


def test_another_password_is_put_back() -> None:
    server = Server(ALL, [user("grace", "reader")])
    assert made_so(server, [{**GRACE, "password": "new"}]) == ["password of grace"]


def test_check_mode_tells_the_same_and_changes_nothing() -> None:
    server = Server([], [user("mallory")])
    told = made_so(server, [GRACE], check_mode=True)
    assert told == ["role reader", "permissions of role reader", "account mallory removed", "account grace",
                    "roles of grace"]  # fmt: skip
    assert server.calls == []


def test_the_model_server_reads_every_model_that_is_served_and_no_other() -> None:
    models = [{"name": "wine"}, {"name": "churn", "version": "@live"}]
    assert rendered("mlflow", "__mlflow_roles")["serving"]["registered_model"] == {"code-search": "READ"}
    roles = rendered("mlflow", "__mlflow_roles", serving_models=models)
    assert roles["serving"]["registered_model"] == {"wine": "READ", "churn": "READ"}


def test_an_alias_that_is_followed_is_moved_by_releasers_only() -> None:
    models = [{"name": "wine"}, {"name": "churn", "version": "@live"}, {"name": "fixed", "version": "3"}]
    assert rendered("mlflow", "__mlflow_release_aliases") == ["champion", "approved"]
    assert rendered("mlflow", "__mlflow_release_aliases", serving_models=models) == ["champion", "approved", "live"]
