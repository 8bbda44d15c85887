"""Who may do what beside MLflow's own permissions: its `authorization_function`, asked once for every request.

MLflow's basic-auth app knows accounts, passwords and permissions. It lets everybody who may edit a model move its
aliases, and everybody who logs in create experiments and models; here both need a role.
"""

from __future__ import annotations

import os
from pathlib import Path

from flask import Response, jsonify, request
from mlflow.exceptions import MlflowException
from mlflow.protos.model_registry_pb2 import (
    DeleteRegisteredModelAlias,
    GetModelVersionByAlias,
    SetRegisteredModelAlias,
)
from mlflow.server import app, auth, handlers
from werkzeug.datastructures import Authorization

# Roles that the accounts of the inventory have: roles/mlflow/vars/main.yml.
CREATORS = frozenset({"writer", "releaser", "training", "training-gate"})
RELEASERS = frozenset({"releaser", "training-gate"})

# Flask's names of the requests, whichever of its addresses one came by.
CREATE = frozenset(handler.__name__ for handler in (handlers._create_experiment, handlers._create_registered_model))
ALIAS = {
    handlers._set_registered_model_alias.__name__: SetRegisteredModelAlias,
    handlers._delete_registered_model_alias.__name__: DeleteRegisteredModelAlias,
}
BY_ALIAS = handlers._get_model_version_by_alias.__name__
# They take an alias away, or what it points at.
REMOVE = frozenset(
    handler.__name__
    for handler in (
        handlers._delete_registered_model,
        handlers._rename_registered_model,
        handlers._delete_model_version,
        handlers._transition_stage,
    )
)

# MLflow takes both from its environment, where /proc would show them.
SECRETS = Path("/run/secrets")
# An editor's line break at the end is no part of them: with it nothing encrypted before could be opened.
app.secret_key = (SECRETS / "mlflow_session_key").read_text(encoding="utf-8").rstrip("\n")
os.environ["MLFLOW_CRYPTO_KEK_PASSPHRASE"] = (
    (SECRETS / "mlflow_encryption_passphrase").read_text(encoding="utf-8").rstrip("\n")
)

# MLflow has no rule for its metrics, and so refuses them to all but administrators.
auth.BEFORE_REQUEST_VALIDATORS["/metrics", "GET"] = auth._allow_authenticated


def authenticate() -> Authorization | Response:
    """Who asks, as MLflow itself finds out; or the answer that refuses the request."""
    found: Authorization | Response = auth.authenticate_request_basic_auth()
    if isinstance(found, Response):
        return found
    wanted, what = _needed()
    if wanted and not _has_one_of(str(found.username), wanted):
        return _refusal(f"{found.username} may not {what}: that takes the role {' or '.join(sorted(wanted))}.")
    return _absence() or found


def _needed() -> tuple[frozenset[str], str]:
    """The roles of which this request needs one, none when MLflow's permissions alone decide, and what it does."""
    endpoint = request.endpoint or ""
    if endpoint in CREATE:
        return CREATORS, "create experiments and models"
    if endpoint in REMOVE:
        return RELEASERS, "remove or rename models and versions"
    if endpoint in ALIAS:
        # Read as the handler itself reads it.
        alias = handlers._get_request_message(ALIAS[endpoint]()).alias
        if alias in os.environ["MLOPS_RELEASE_ALIASES"].split(","):
            return RELEASERS, f"move the alias {alias}"
    return frozenset(), ""


def _absence() -> Response | None:
    """The answer to a question for a version of a model that does not exist.

    MLflow would look for the model before it looks at permissions, and refuse: who waits for the first champion, the
    model server and the training run that makes it, would be told of a permission that they have.
    """
    if request.endpoint == BY_ALIAS:
        try:
            handlers._get_model_registry_store().get_registered_model(
                handlers._get_request_message(GetModelVersionByAlias()).name
            )
        except MlflowException as error:
            return Response(error.serialize_as_json(), error.get_http_status_code(), mimetype="application/json")
    return None


def _has_one_of(name: str, roles: frozenset[str]) -> bool:
    user = auth.store.get_user(name)
    return bool(user.is_admin) or any(role.name in roles for role in auth.store.list_user_roles(user.id))


def _refusal(message: str) -> Response:
    # The form in which MLflow's clients expect an error.
    answer = jsonify({"error_code": "PERMISSION_DENIED", "message": message})
    answer.status_code = 403
    return answer
