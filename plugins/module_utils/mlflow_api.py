# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""The API of the host's MLflow, as its administrator asks it."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

TIMEOUT_SECONDS = 30


class MlflowError(Exception):
    """MLflow refuses or does not answer; the message says what it was asked."""


class Server:
    """The API of an MLflow with a login.

    Args:
        url: where it answers.
        user: who asks.
        password: of the one who asks.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self._url = url
        self._credentials = (user, password)

    def ask(self, method: str, call: str, *, version: float = 2.0, **arguments: Any) -> dict[str, Any]:
        """Call the API and return its answer.

        Raises:
            MlflowError: it refuses, or does not answer.
        """
        status, text = self._send(self._credentials, method, f"{version}/mlflow/{call}", arguments)
        if status != HTTPStatus.OK:
            raise MlflowError(f"MLflow answers {status} to {call}: {text.strip()[:300]}")
        return dict(json.loads(text or "{}"))

    def lets_in(self, user: str, password: str) -> bool:
        """Whether this is the user's password."""
        return self._send((user, password), "GET", "2.0/mlflow/users/current", {})[0] == HTTPStatus.OK

    def _send(self, credentials: tuple[str, str], method: str, path: str, arguments: dict[str, Any]) -> tuple[int, str]:
        token = base64.b64encode(":".join(credentials).encode()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
        url, body = f"{self._url}/api/{path}", None
        if method == "GET":
            url += f"?{urlencode(arguments)}" if arguments else ""
        else:
            body = json.dumps(arguments).encode()
        # The address is the role's, of this host.
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310
        # A proxy of the host's environment leads elsewhere.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")
        except OSError as error:
            raise MlflowError(f"MLflow does not answer on {self._url}: {error}") from error
