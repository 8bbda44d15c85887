# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Check the request, the settings and the host in one task, before anything is changed."""

from __future__ import annotations

import configparser
import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

# Tags that Ansible itself gives a meaning.
ANSIBLE_TAGS = frozenset({"all", "always", "never", "tagged", "untagged"})
APPLIANCE_GROUP = "mlops"
EMBEDDED_STORES = frozenset({"sqlite", "postgres"})
DATABASES = frozenset({"postgresql", "postgresql+psycopg2", "mysql+pymysql"})
LOCAL_ARTIFACTS = "/var/lib/mlflow/artifacts"
# What MLflow's image has clients for, and how to write it.
OBJECT_STORES = {
    "s3": "s3://bucket/path",
    "gs": "gs://bucket/path",
    "wasbs": "wasbs://container@account.blob.core.windows.net/path",
}
# MLflow itself accepts no others.
AZURE_CONTAINER = re.compile(r"[^@]+@[^.]+\.blob\.core\.(windows\.net|chinacloudapi\.cn|usgovcloudapi\.net)")
ANY_BUCKET = re.compile(r".+")
# Their letters alone, so that Password123! is one of them; empty for those without letters.
DEFAULT_PASSWORDS = frozenset(
    {"", "admin", "changeit", "changeme", "default", "grafana", "mlflow", "mlops", "password", "postgres", "root"}
    # The last one is that of the Compose system.
    | {"backup", "example", "letmein", "passw", "qwerty", "restic", "secret", "test", "user", "mlflowpassword"}
)
GRAFANA_PASSWORD_LENGTH = 4

# The options of one role, as its meta/argument_specs.yml has them.
Options = dict[str, Any]


def role_options(roles: Path) -> dict[str, Options]:
    """The options of every role by the role's name, read from ``meta/argument_specs.yml``.

    Raises:
        OSError: a role has no argument specification.
    """
    specs: dict[str, Options] = {}
    for role in sorted(path for path in roles.iterdir() if (path / "tasks").is_dir()):
        document = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
        specs[role.name] = document["argument_specs"]["main"].get("options", {})
    return specs


def unknown_tags(tags: Iterable[str], profiles: Mapping[str, Any]) -> list[str]:
    """Complaints about tags that name no profile."""
    valid = ", ".join(profiles)
    return [
        f"tag {tag!r}: no such profile{_nearest(tag, profiles)}; the profiles are: {valid}."
        for tag in tags
        if tag not in profiles and tag not in ANSIBLE_TAGS
    ]


def wanted_services(
    tags: Iterable[str],
    groups: Iterable[str],
    profiles: Mapping[str, list[str]],
    service_groups: Mapping[str, list[str]],
) -> list[str]:
    """The services that this run makes so on a host.

    Args:
        tags: tags of the run; Ansible's ``all`` when none was given.
        groups: groups of the host.
        profiles: services by profile.
        service_groups: the groups that a host must be in, all of them, to have a service.

    Returns:
        Services in the order of the profiles, each once.
    """
    chosen = set(tags)
    if chosen & {"all", "tagged"}:
        # No tag is everything the inventory gives the host; a training run is asked for by name only.
        chosen |= {"full"}
    services = dict.fromkeys(
        service for profile, members in profiles.items() if profile in chosen for service in members
    )
    return [service for service in services if set(groups).issuperset(service_groups.get(service, [APPLIANCE_GROUP]))]


def missing_groups(
    tags: Iterable[str], inventory_groups: Mapping[str, list[str]], profile_groups: Mapping[str, str]
) -> list[str]:
    """Complaints about profiles whose group has no host, so that their run would do nothing.

    Args:
        tags: tags of the run.
        inventory_groups: hosts by group.
        profile_groups: the group that a profile is of no use without.
    """
    return [
        f"tag {tag!r}: no host of the inventory is in group {group!r}: put the host there, or leave the tag out. "
        f"Groups that have hosts: {', '.join(sorted(name for name, hosts in inventory_groups.items() if hosts))}."
        for tag, group in profile_groups.items()
        if tag in set(tags) and not inventory_groups.get(group)
    ]


def unknown_settings(names: Iterable[str], specs: Mapping[str, Options], facts: Iterable[str]) -> list[str]:
    """Complaints about variables that carry a role's prefix but are no option of it.

    Args:
        names: names of all variables of a host.
        specs: options by role.
        facts: names the appliance sets itself.
    """
    known = {name for options in specs.values() for name in options} | set(facts)
    prefixes = tuple(f"{role}_" for role in (*specs, APPLIANCE_GROUP))
    return [
        f"{name}: no such setting{_nearest(name, known)}; see the README of the role for its settings."
        for name in sorted(names)
        if name.startswith(prefixes) and name not in known
    ]


def wrong_values(values: Mapping[str, Any], specs: Mapping[str, Options]) -> list[str]:
    """Complaints about values of the wrong type or outside their choices, and files that do not exist.

    Args:
        values: values of the settings by name, templates resolved.
        specs: options by role.
    """
    complaints: dict[str, None] = {}
    for options in specs.values():
        for name, option in options.items():
            if name not in values or values[name] is None:
                continue
            value = values[name]
            result = ArgumentSpecValidator({name: {**option, "required": False}}).validate({name: value})
            for message in result.error_messages:
                shown = "" if option.get("no_log") else f" {value!r}"
                complaints[f"{name}:{shown} is refused: {message.rstrip('.')}."] = None
            if not result.error_messages and "path" in (option["type"], option.get("elements")):
                complaints.update(dict.fromkeys(_missing_files(name, value)))
    return list(complaints)


def _missing_files(name: str, value: Any) -> list[str]:
    paths = value if isinstance(value, list) else [value]
    return [
        f"{name}: {path!r} is no file on the controller: correct the path or remove it from the setting."
        for path in paths
        if path and not Path(path).expanduser().exists()
    ]


def wrong_store(store: Mapping[str, str], groups: Iterable[str]) -> list[str]:
    """Complaints about a database that MLflow cannot use.

    Args:
        store: the argument ``store`` of the task.
        groups: groups of the host.
    """
    complaints = []
    uri = urlsplit(store["wanted"])
    if uri.scheme or store["wanted"] not in EMBEDDED_STORES:
        if uri.scheme in {"mysql", "mariadb"}:
            complaints.append(
                f"mlflow_backend_store_uri: {uri.scheme}:// names no driver: write "
                "mysql+pymysql://user@host/database, for MySQL and MariaDB."
            )
        elif uri.scheme not in DATABASES:
            complaints.append(
                "mlflow_backend_store_uri: give the URI of a PostgreSQL, postgresql://user@host/database, "
                "or of a MySQL or MariaDB, mysql+pymysql://user@host/database."
            )
        if uri.password is not None or {"password", "passwd"} & parse_qs(uri.query).keys():
            complaints.append(
                "mlflow_backend_store_uri: it holds a password, which command lines would show: "
                "move the password to mlflow_backend_store_password."
            )
        if "postgres" in set(groups):
            complaints.append(
                "mlflow_backend_store_uri: this host is in group 'postgres' and would have two databases: "
                "take it out of the group, or remove the setting."
            )
    return complaints


def wrong_artifacts(destination: str, credentials: str, own_image: bool) -> list[str]:
    """Complaints about a place for artifacts that MLflow cannot use, and about credentials of another kind of place.

    Args:
        destination: the setting ``mlflow_artifacts_destination``.
        credentials: the setting ``mlflow_artifacts_credentials``.
        own_image: whether MLflow's image is not the appliance's, and may have other clients.
    """
    if destination == LOCAL_ARTIFACTS:
        return []
    uri = urlsplit(destination)
    setting = f"mlflow_artifacts_destination: {destination!r}"
    places = f"give {', '.join(OBJECT_STORES.values())}, or {LOCAL_ARTIFACTS}, MLflow's volume"
    if not uri.scheme:
        return [f"{setting} is no place that outlives the container: {places}."]
    if uri.scheme not in OBJECT_STORES:
        way_out = f"{places}, or name an image of your own that has its client in mlflow_image"
        return [] if own_image else [f"{setting}: MLflow's image has no client for {uri.scheme}://: {way_out}."]
    if not (AZURE_CONTAINER if uri.scheme == "wasbs" else ANY_BUCKET).fullmatch(uri.netloc):
        return [f"{setting} is not of the form {OBJECT_STORES[uri.scheme]}."]
    return _wrong_credentials(uri.scheme, credentials)


def _wrong_credentials(scheme: str, credentials: str) -> list[str]:
    if scheme == "wasbs":
        right = re.search(r"(?i)\b(accountkey|sharedaccesssignature)=", credentials) is not None
        wanted = "the connection string of the storage account, with AccountName=…;AccountKey=…"
    elif scheme == "gs":
        right = not credentials or _is_google_key(credentials)
        wanted = "the text of a service account's JSON key"
    else:
        right = not credentials or _is_aws_configuration(credentials)
        wanted = "the text of an AWS configuration file, with [default] and aws_access_key_id"
    return [] if right else [f"mlflow_artifacts_credentials: for {scheme}:// give {wanted}."]


def _is_google_key(text: str) -> bool:
    try:
        return "type" in json.loads(text)
    except (ValueError, TypeError):
        return False


def _is_aws_configuration(text: str) -> bool:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error:
        return False
    return bool(parser.sections())


def wrong_model_uri(text: str) -> list[str]:
    """Complaints about what the model server is to serve.

    Args:
        text: the setting ``serving_model_uri``.
    """
    match = re.fullmatch(r"models:/[^/:@]+(?:@[\w-]+|/([^/:@]+))", text)
    way_out = "give models:/NAME@ALIAS, models:/NAME/3 or models:/NAME/latest"
    if match is None:
        return [f"serving_model_uri: {text!r} is no URI of a registered model: {way_out}."]
    version = match[1] or "latest"
    if version.lower() != "latest" and not (version.isascii() and version.isdigit()):
        return [f"serving_model_uri: {version!r} is no version, and MLflow has no stages any more: {way_out}."]
    return []


def port_clashes(ports: Mapping[str, int]) -> list[str]:
    """Complaints about settings that claim the same port.

    Args:
        ports: claimed ports by the setting that claims them.
    """
    claimed: dict[int, str] = {}
    complaints = []
    for setting, port in ports.items():
        if not 0 < port < 65536:
            complaints.append(f"{setting}: {port} is no port: give a number from 1 to 65535.")
        elif port in claimed:
            complaints.append(f"{setting}: port {port} is already claimed by {claimed[port]}: change one of them.")
        else:
            claimed[port] = setting
    return complaints


def default_passwords(values: Mapping[str, Any]) -> list[str]:
    """Complaints about passwords that everybody tries first.

    Args:
        values: values of the settings by name, templates resolved.
    """
    return [
        f"{name}: it is a well-known default: choose another, and keep it in Ansible Vault."
        for name, value in sorted(values.items())
        if name.endswith("_password") and re.sub(r"[^a-z]", "", str(value).lower()) in DEFAULT_PASSWORDS and value
    ]


def unfit_logins(values: Mapping[str, Any]) -> list[str]:
    """Complaints about passwords and names that would not arrive whole, or that Grafana refuses.

    Args:
        values: values of the settings by name, templates resolved.
    """
    complaints = []
    for name in ("grafana_admin_password", "postgres_password"):
        password = str(values.get(name) or "")
        if password != password.strip() or not password.isprintable():
            complaints.append(
                f"{name}: it begins or ends with a space, or holds a line break or another control character: "
                "give one without."
            )
    if 0 < len(str(values.get("grafana_admin_password") or "")) < GRAFANA_PASSWORD_LENGTH:
        complaints.append(
            f"grafana_admin_password: Grafana refuses a password of fewer than {GRAFANA_PASSWORD_LENGTH} characters: "
            "give a longer one, or leave it empty, and the host makes one."
        )
    user = str(values.get("grafana_admin_user", "admin"))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]*", user):
        complaints.append(
            f"grafana_admin_user: {user!r} is refused: give letters, digits, '.', '_', '@' and '-', "
            "beginning with a letter or a digit."
        )
    return complaints


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {matches[0]!r}" if matches else ""


class ActionModule(ActionBase):
    """Action half of the module ``preflight``: what the controller knows; the module looks at the host.

    Task arguments:
        profiles: services by tag.
        service_groups: the inventory groups that, all together, give a host a service; ``mlops`` for those not named.
        profile_groups: the group that a profile is of no use without.
        ports: published ports, as ``{service: {setting: port}}``.
        facts: names of variables that the appliance sets itself.
        disk_free_mb: free space, in MB, that the host must have; by path.
        store: ``wanted``, where MLflow's data are to be; ``change``, what to do when they are elsewhere now.
        model_uri: what the model server is to serve.
        packages: Debian packages that the host is to have.
        files: files of the host to tell the content of.
    """

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Refuse what is wrong, or return what the module saw and the services of this run as facts."""
        task_vars = task_vars or {}
        arguments = self._task.args
        specs = role_options(Path(task_vars["role_path"]).parent)
        tags = task_vars["ansible_run_tags"]
        services = wanted_services(
            tags,
            task_vars["group_names"],
            arguments["profiles"],
            arguments["service_groups"],
        )
        values = self._values(task_vars, specs)
        complaints = [
            *unknown_tags(tags, arguments["profiles"]),
            *missing_groups(tags, task_vars["groups"], arguments["profile_groups"]),
            *unknown_settings(task_vars, specs, arguments["facts"]),
            *default_passwords(values),
            *unfit_logins(values),
            *wrong_values(values, specs),
            *wrong_store(arguments["store"], task_vars["group_names"]),
            *wrong_artifacts(
                str(values["mlflow_artifacts_destination"]),
                str(values["mlflow_artifacts_credentials"]),
                own_image=bool(values.get("mlflow_image")),
            ),
            *wrong_model_uri(arguments["model_uri"]),
        ]
        _refuse(complaints)

        ports = {
            setting: int(port)
            for service, claims in arguments["ports"].items()
            if service in services
            for setting, port in claims.items()
        }
        _refuse(port_clashes(ports))
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._execute_module(
            module_name="preflight",
            module_args={
                "ports": ports,
                "disk_free_mb": arguments["disk_free_mb"],
                "store": arguments["store"] if "mlflow" in services else {},
                "packages": arguments["packages"],
                "files": arguments["files"],
            },
            task_vars=task_vars,
        )
        if not result.get("failed"):
            result["ansible_facts"] = {
                "mlops_services": services,
                "mlops_packages_missing": result.pop("packages_missing"),
                "mlops_file_digests": result.pop("file_digests"),
                "mlops_images_present": result.pop("images_present"),
                "mlops_networks_present": result.pop("networks_present"),
                "mlops_services_present": result.pop("services_present"),
                "mlops_engine_present": result.pop("engine_present"),
                "mlops_store": result.pop("store"),
            }
        return result

    def _values(self, task_vars: dict[str, Any], specs: dict[str, Options]) -> dict[str, Any]:
        """The settings that are set, templates resolved."""
        values = {}
        for name in {name for options in specs.values() for name in options} & task_vars.keys():
            try:
                values[name] = self._templar.template(task_vars[name])
            except AnsibleUndefinedVariable as error:
                raise AnsibleActionFail(f"{name}: cannot be resolved: {error}") from error
        return values


def _refuse(complaints: list[str]) -> None:
    if complaints:
        raise AnsibleActionFail("Nothing was changed. " + "\n".join(complaints))
