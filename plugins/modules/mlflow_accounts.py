# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""MLflow has the accounts and roles of the inventory, and no others."""

from __future__ import annotations

import secrets
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.container_host import GENERATED_SECRET_BYTES, SECRETS_DIR, Host, runner
from ansible.module_utils.mlflow_api import MlflowError, Server

DOCUMENTATION = r"""
module: mlflow_accounts
short_description: The accounts of MLflow's basic-auth app
description:
  - Makes accounts and roles so, through the API of the running server, as its administrator.
  - An account that is not named loses its access. Roles that are not named stay.
  - Services have passwords that the host makes, in files of root's in C(/etc/mlops/secrets).
options:
  url:
    description: Where MLflow answers on this host.
    type: str
    required: true
  administrator:
    description: The administrator's account. Its password is in the secret C(mlflow_admin_password).
    type: str
    default: admin
  roles:
    description: >-
      What each role may do, as C({role: {type: {pattern: permission}}}) in the words of MLflow; a role without
      permissions is a mark.
    type: dict
    required: true
  people:
    description: Accounts with a password of the inventory's.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The account., type: str, required: true}
      password: {description: Its password., type: str, required: true}
      roles: {description: Its roles., type: list, elements: str, default: []}
      admin: {description: Whether it may do everything., type: bool, default: false}
  services:
    description: Accounts with a password that the host makes and keeps.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The account., type: str, required: true}
      roles: {description: Its roles., type: list, elements: str, default: []}
      secret: {description: Name of the secret file., type: str, required: true}
      client:
        description: Whether the file is one that MLflow's client reads, with the account's name, or the password alone.
        type: bool
        default: true
attributes:
  check_mode: {support: full, description: Nothing is changed; a server that does not answer yet has no accounts.}
  diff_mode: {support: none}
author: [The mlops-appliance authors]
"""

EXAMPLES = r"""
- name: MLflow has its accounts
  mlflow_accounts:
    url: http://127.0.0.1:5000
    roles:
      reader: {experiment: {"*": READ}, registered_model: {"*": READ}}
    people:
      - {name: grace, password: "{{ vault_grace }}", roles: [reader]}
"""

RETURN = r"""
changes:
  description: What changed, or would change, such as C(account grace) or C(password of grace).
  returned: always
  type: list
  elements: str
"""

WORKSPACE = "default"
# Names of the roles that MLflow makes for the permissions of one account.
OWN_ROLE_PREFIX = "__user_"

# What one role may do: permission by type and pattern.
Grants = dict[tuple[str, str], str]

ARGUMENT_SPEC: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "administrator": {"type": "str", "default": "admin"},
    "roles": {"type": "dict", "required": True},
    "people": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "roles": {"type": "list", "elements": "str", "default": []},
            "admin": {"type": "bool", "default": False},
        },
    },
    "services": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "roles": {"type": "list", "elements": "str", "default": []},
            "secret": {"type": "str", "required": True, "no_log": False},
            "client": {"type": "bool", "default": True},
        },
    },
}


class Accounts:
    """The accounts and roles of one server.

    Args:
        server: its API, asked as administrator.
        check_mode: change nothing; say what would change.
    """

    def __init__(self, server: Server, *, check_mode: bool) -> None:
        self._server = server
        self._check_mode = check_mode
        self._role_ids: dict[str, int] = {}
        self.changes: list[str] = []

    def provide_roles(self, wanted: dict[str, Grants]) -> None:
        """Give each role its permissions, and no others."""
        found = self._server.ask("GET", "roles/list", version=3.0, workspace=WORKSPACE)["roles"]
        present = {role["name"]: role for role in found}
        for name, grants in wanted.items():
            role = present.get(name) or self._change(
                f"role {name}", "POST", "roles/create", version=3.0, name=name, workspace=WORKSPACE
            ).get("role", {"id": 0, "permissions": []})
            self._role_ids[name] = role["id"]
            self._provide_grants(name, role, grants)

    def _provide_grants(self, name: str, role: dict[str, Any], wanted: Grants) -> None:
        keys = ("resource_type", "resource_pattern", "permission")
        present = {tuple(row[key] for key in keys): row["id"] for row in role["permissions"]}
        goal = {(type_, pattern, permission) for (type_, pattern), permission in wanted.items()}
        what = f"permissions of role {name}"
        for key in present.keys() - goal:
            self._change(what, "DELETE", "roles/permissions/remove", version=3.0, role_permission_id=present[key])
        for type_, pattern, permission in sorted(goal - present.keys()):
            grant = dict(zip(keys, (type_, pattern, permission), strict=True))
            self._change(what, "POST", "roles/permissions/add", version=3.0, role_id=role["id"], **grant)

    def provide(self, wanted: list[dict[str, Any]], keep: str) -> None:
        """Make these accounts so, and remove all others but the one to keep."""
        present = {user["username"]: user for user in self._server.ask("GET", "users/list")["users"]}
        for name in present.keys() - {account["name"] for account in wanted} - {keep}:
            self._change(f"account {name} removed", "DELETE", "users/delete", username=name)
        for account in wanted:
            self._provide_account(account, present.get(account["name"]))

    def _provide_account(self, account: dict[str, Any], present: dict[str, Any] | None) -> None:
        name, password = account["name"], account["password"]
        if present is None:
            self._change(f"account {name}", "POST", "users/create", username=name, password=password)
            present = {"is_admin": False, "roles": []}
        elif not self._server.lets_in(name, password):
            self._change(f"password of {name}", "PATCH", "users/update-password", username=name, password=password)
        if present["is_admin"] != account["admin"]:
            self._change(f"rank of {name}", "PATCH", "users/update-admin", username=name, is_admin=account["admin"])
        roles = {role["name"] for role in present["roles"] if not role["name"].startswith(OWN_ROLE_PREFIX)}
        # Roles that somebody made by hand are not the inventory's to take away.
        for role in sorted((roles & self._role_ids.keys()) ^ set(account["roles"])):
            call, method = ("roles/unassign", "DELETE") if role in roles else ("roles/assign", "POST")
            self._change(f"roles of {name}", method, call, version=3.0, username=name, role_id=self._role_ids[role])

    def _change(self, what: str, method: str, call: str, **arguments: Any) -> dict[str, Any]:
        if what not in self.changes:
            self.changes.append(what)
        return {} if self._check_mode else self._server.ask(method, call, **arguments)


def service_password(host: Host, name: str, secret: str, *, client: bool, check_mode: bool) -> tuple[str, bool]:
    """The password of a service's account, and whether its file was made now.

    Args:
        host: the host that keeps the file.
        name: the account.
        secret: name of the file.
        client: whether the file is in the form that MLflow's client reads.
        check_mode: do not write it.
    """
    path = f"{SECRETS_DIR}/{secret}"
    text = host.read(path)
    if text:
        return text.strip().rpartition(" = ")[2], False
    # Letters and digits alone mean nothing to anybody who reads the file.
    password = secrets.token_hex(GENERATED_SECRET_BYTES)
    if not check_mode:
        lines = f"[mlflow]\nmlflow_tracking_username = {name}\nmlflow_tracking_password = {password}\n"
        host.write(path, lines if client else password, 0o600)
    return password, True


def make_so(params: dict[str, Any], host: Host, *, check_mode: bool) -> list[str]:
    """Do what the parameters ask, and return what changed.

    Raises:
        MlflowError: the server refuses, or does not answer.
    """
    changes, wanted = [], [dict(account) for account in params["people"]]
    for service in params["services"]:
        password, made = service_password(
            host, service["name"], service["secret"], client=service["client"], check_mode=check_mode
        )
        changes += [f"{SECRETS_DIR}/{service['secret']}"] if made else []
        wanted.append({"name": service["name"], "password": password, "roles": service["roles"], "admin": False})
    administrator = params["administrator"]
    password = host.read(f"{SECRETS_DIR}/mlflow_admin_password") or ""
    server = Server(params["url"], administrator, password)
    accounts = Accounts(server, check_mode=check_mode)
    try:
        accounts.provide_roles(
            {
                role: {(type_, pattern): level for type_, rows in grants.items() for pattern, level in rows.items()}
                for role, grants in params["roles"].items()
            }
        )
    except MlflowError:
        if not check_mode:
            raise
        # It runs without a login, or not at all: the run that this one foretells would begin with nothing.
        return [*changes, *(f"account {account['name']}" for account in wanted)]
    accounts.provide(wanted, keep=administrator)
    return changes + accounts.changes


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        changes = make_so(module.params, Host(runner(module)), check_mode=module.check_mode)
    except MlflowError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changes), changes=changes)


if __name__ == "__main__":
    main()
