"""What the registry has under a model's URI: a server's over HTTP, any other store's by MLflow's client.

The supervisor asks every few seconds for years: importing MLflow there costs 150 MB, so a server is asked with the
standard library alone.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlencode, urlsplit

from model_server.common.model_uri import ModelUri
from model_server.common.store import ModelVersion

_TIMEOUT_SECONDS = 5.0


class RegistryError(Exception):
    """The registry did not answer, or not as a registry."""


class Registry(Protocol):
    """One model URI in a registry."""

    def champion(self) -> ModelVersion | None:
        """The version it resolves to, or None when there is no such model, alias or version.

        Raises:
            RegistryError: when the registry cannot be asked.
        """


def registry_at(tracking_uri: str, model: ModelUri) -> Registry:
    """The registry of a tracking server or store."""
    kind = ServerRegistry if tracking_uri.startswith(("http://", "https://")) else StoreRegistry
    return kind(tracking_uri, model)


class StoreRegistry:
    """A store that MLflow's client reads itself: a database, a directory, a vendor's service."""

    def __init__(self, tracking_uri: str, model: ModelUri) -> None:
        self._tracking_uri = tracking_uri
        self._model = model

    def champion(self) -> ModelVersion | None:
        """As :meth:`Registry.champion`."""
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise RegistryError(str(error)) from error
        try:
            client, model = MlflowClient(self._tracking_uri), self._model
            if model.version:
                found = client.get_model_version(model.name, model.version)
            else:
                found = client.get_model_version_by_alias(model.name, model.alias)
        except MlflowException as error:
            if _says_absent(error.error_code, error.message):
                return None
            raise RegistryError(error.message) from error
        except Exception as error:
            # A driver's own, or that of a package that is not here.
            raise RegistryError(f"{type(error).__name__}: {error}") from error
        return ModelVersion(
            found.name, str(found.version), found.creation_timestamp, found.run_id or "", found.source or ""
        )


class ServerRegistry:
    """A registry on the MLflow server at ``tracking_uri``.

    Credentials and TLS come from the variables and the file that MLflow's own client reads.
    """

    def __init__(self, tracking_uri: str, model: ModelUri) -> None:
        if model.version:
            call, query = "model-versions/get", {"name": model.name, "version": model.version}
        else:
            call, query = "registered-models/alias", {"name": model.name, "alias": model.alias}
        parts = urlsplit(tracking_uri)
        host = parts.netloc.rpartition("@")[2]
        self._url = f"{parts.scheme}://{host}{parts.path}/api/2.0/mlflow/{call}?{urlencode(query, quote_via=quote)}"
        self._headers = {"Accept": "application/json", **_authorization(parts.username, parts.password)}
        self._tls = _tls_context() if parts.scheme == "https" else None

    def champion(self) -> ModelVersion | None:
        """As :meth:`Registry.champion`."""
        # Its URL is one of http or https.
        request = urllib.request.Request(self._url, headers=self._headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=self._tls) as response:  # noqa: S310
                found = json.load(response)["model_version"]
            return ModelVersion(
                name=found["name"],
                version=str(found["version"]),
                created=int(found["creation_timestamp"]),
                run_id=found.get("run_id", ""),
                source=found.get("source", ""),
            )
        except urllib.error.HTTPError as error:
            if error.code in (400, 404) and _is_absent(error.read(65536)):
                return None
            raise RegistryError(f"answered {error.code} {error.reason}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(str(error) or type(error).__name__) from error


def _is_absent(body: bytes) -> bool:
    """Whether an error body says that the model or its alias does not exist."""
    try:
        answer = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and _says_absent(answer.get("error_code"), str(answer.get("message")))


def _says_absent(error_code: str | None, message: str) -> bool:
    # MLflow says INVALID_PARAMETER_VALUE for an alias that is missing from a model that exists.
    return error_code == "RESOURCE_DOES_NOT_EXIST" or (
        error_code == "INVALID_PARAMETER_VALUE" and "alias" in message.lower()
    )


def _authorization(user: str | None, password: str | None) -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user = user or os.environ.get("MLFLOW_TRACKING_USERNAME") or _credentials_file("mlflow_tracking_username")
    password = password or os.environ.get("MLFLOW_TRACKING_PASSWORD") or _credentials_file("mlflow_tracking_password")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()}


def _credentials_file(key: str) -> str | None:
    parser = configparser.ConfigParser()
    parser.read(Path.home() / ".mlflow" / "credentials", encoding="utf-8")
    return parser.get("mlflow", key, fallback=None)


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() == "true":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
