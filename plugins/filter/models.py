# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Filters that say which model servers a host has, and how they are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

SERVICE = "serving"


def model_slug(name: str) -> str:
    """What stands for a registered model in the names of its unit, volume and socket.

    Raises:
        AnsibleFilterError: nothing of the name is left.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise AnsibleFilterError(f"serving_models: name {name!r} has no letter or digit of a to z and 0 to 9")
    return slug


def model_uri(name: str, version: object) -> str:
    """What the model server is asked to serve, as MLflow writes it.

    Args:
        name: the registered model.
        version: a number, ``latest``, or an alias as ``@champion``.
    """
    separator = "" if str(version).startswith("@") else "/"
    return f"models:/{name}{separator}{version}"


def model_servers(
    models: Iterable[Mapping[str, Any]], uri: str, settings: Mapping[str, Any], registered: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """The model servers of a host, one for each model.

    Args:
        models: the setting ``serving_models``; empty for the one model of the other settings.
        uri: that one model, as MLflow writes it.
        settings: what an entry has that says nothing of it.
        registered: further models.

    Returns:
        For each model its entry with these settings, and ``name`` (the registered model), ``uri``, ``service`` (the
        name that its replicas share) and ``containers`` (their names).

    Raises:
        AnsibleFilterError: a name that leaves nothing to name a unit by.
    """
    one = {"name": re.sub(r"^models:/([^/@]*).*$", r"\1", uri), "uri": uri}
    entries = list(models or [one])
    named = {entry["name"] for entry in entries}
    servers: list[dict[str, Any]] = []
    for entry in [*entries, *({"name": name} for name in registered if name not in named)]:
        server = {**settings, **{key: value for key, value in entry.items() if value is not None}}
        server["uri"] = server.get("uri") or model_uri(server["name"], server["version"])
        server["service"] = f"{SERVICE}-{model_slug(server['name'])}" if servers else SERVICE
        further = range(2, int(server["replicas"]) + 1)
        server["containers"] = [server["service"], *(f"{server['service']}_{number}" for number in further)]
        servers.append(server)
    return servers


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by the name that templates use."""
        return {"model_servers": model_servers}
