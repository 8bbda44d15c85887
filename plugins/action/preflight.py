# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Check the request, the settings and the host in one task, before anything is changed."""

from __future__ import annotations

import configparser
import difflib
import hashlib
import importlib
import ipaddress
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.hazmat.primitives import serialization

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
BIND_ADDRESSES = (
    *("mlops_bind_address", "nginx_bind_address", "mlflow_bind_address", "prometheus_bind_address"),
    *("grafana_bind_address", "alertmanager_bind_address", "postgres_bind_address"),
)
# As the role nginx chooses them from mlops_server_names for an ACME server.
DNS_NAME = re.compile(r"([A-Za-z0-9_-]+\.)+[A-Za-z][A-Za-z0-9-]*")
# MLflow's own minimum.
MLFLOW_PASSWORD_LENGTH = 12
MLFLOW_OWN_ACCOUNTS = frozenset({"admin", "release", "serving", "training", "monitoring"})

# What stands in a path of nginx as it is, and leaves something to name a unit by.
MODEL_NAME = re.compile(r"(?=.*[A-Za-z0-9])[A-Za-z0-9 ._()+-]+")
MODEL_VERSION = re.compile(r"@[\w-]+|latest|[1-9][0-9]*")
MEMORY = re.compile(r"[1-9][0-9]*[kmg]")

# As the role training tells a repository from a directory.
GIT_URL = re.compile(r"[a-z+]+://|[^/]+@[^/]+:")
IMAGE_BY_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
CHECKSUMS = "SHA256SUMS"

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


def wrong_models(models: Any) -> list[str]:
    """Complaints about models that cannot be served side by side.

    Args:
        models: the setting ``serving_models``; entries of the wrong type have their own complaint.
    """
    complaints = []
    former: dict[str, str] = {}
    for entry in models if isinstance(models, list) else []:
        if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
            continue
        name, version = entry["name"], str(entry.get("version") or "latest")
        setting = f"serving_models: name {name!r}"
        if not MODEL_NAME.fullmatch(name):
            complaints.append(
                f"{setting} cannot be served beside others: give one of letters, digits, spaces and ._()+- only, "
                "with a letter or digit of a to z and 0 to 9."
            )
            continue
        # What is left of it in the names of its unit and its volume, and in its address.
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        address = hashlib.sha256(f"serving-{slug}".encode()).hexdigest()[:4]
        for claim in dict.fromkeys((slug, f"address {address}")):
            if claim in former:
                complaints.append(
                    f"{setting} and {former[claim]!r} would have the same unit or address ({claim}): leave one out, or "
                    "register it under another name."
                )
                break
        former |= {slug: name, f"address {address}": name}
        if not MODEL_VERSION.fullmatch(version):
            complaints.append(f'serving_models: version {version!r} of {name!r}: give "@ALIAS", latest or a number.')
        complaints += [
            f"serving_models: {key} {entry[key]!r} of {name!r}: give a number above 0."
            for key in ("replicas", "cpus", "start_timeout", "refresh_seconds")
            if key in entry and _number(entry[key]) <= 0
        ]
        if "memory" in entry and not MEMORY.fullmatch(str(entry["memory"])):
            complaints.append(
                f"serving_models: memory {entry['memory']!r} of {name!r}: give a size such as 512m or 2g."
            )
    return complaints


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        # Its type has its own complaint.
        return 1


def wrong_project(values: Mapping[str, Any], app: Path) -> list[str]:
    """Complaints about a training project that cannot be run as asked.

    Args:
        values: values of the settings by name, templates resolved.
        app: directory of the application, whose own look at a project this is.
    """
    project = str(values.get("training_project") or "")
    if not project:
        return [
            f"{name}: it is a project's, and training_project names none: set that, or remove {name}."
            for name in ("training_parameters", "training_gate", "training_search")
            if values.get(name)
        ]
    complaints = _wrong_gate(values.get("training_gate") or {})
    mlproject, search_settings = _projects(app)
    parameters = values.get("training_parameters") or {}
    if not isinstance(parameters, dict):
        return complaints
    if values.get("training_search"):
        try:
            search = search_settings.Search.parse(json.dumps(values["training_search"]))
            search.refuse_both(parameters)
        except mlproject.ProjectError as error:
            return [*complaints, f"{error}."]
        parameters = parameters | search.example
    if GIT_URL.match(project):
        if not re.fullmatch(r"[^#]+#[^#\s]+", project):
            complaints.append(
                f"training_project: {project!r} names no revision: write URL#REVISION, a commit, a tag or a branch."
            )
        if urlsplit(project).password is not None:
            complaints.append(
                "training_project: its URL holds a password, which each run would record: leave it out, and give it to "
                "git on the controller, by a credential helper or a key of SSH."
            )
        # What is in it, the run itself looks at.
        return complaints
    entry_point = str(values.get("training_entry_point") or "main")
    complaints += mlproject.complaints(Path(project).expanduser(), entry_point, parameters)
    return complaints


def _projects(app: Path) -> tuple[Any, Any]:
    """The application's own look at projects and searches, which needs no more than Ansible does."""
    sys.path.insert(0, str(app))
    try:
        return importlib.import_module("projects.mlproject"), importlib.import_module("projects.search_settings")
    finally:
        sys.path.remove(str(app))


def _wrong_gate(gate: Any) -> list[str]:
    way_out = "write {metric: rmse, direction: minimize}, or maximize"
    if not gate:
        return []
    if not isinstance(gate, dict) or set(gate) != {"metric", "direction"} or not gate["metric"]:
        return [f"training_gate: {gate!r} is refused: {way_out}."]
    if gate["direction"] not in {"minimize", "maximize"}:
        return [f"training_gate: direction {gate['direction']!r} is refused: {way_out}."]
    return []


def unsure_images(values: Mapping[str, Any], services: Iterable[str]) -> list[str]:
    """Complaints about images that could be another one than was meant: without a digest, or without a checksum.

    Args:
        values: values of the settings by name, templates resolved.
        services: services of this run.
    """
    complaints = []
    archived = []
    for service in services:
        image = str(values.get(f"{service}_image") or "")
        source = values.get(f"{service}_image_source") or (
            "registry" if image else values.get("mlops_image_source", "build")
        )
        if source == "archive":
            archived.append(f"{service}.tar")
        elif source == "registry" and not image:
            complaints.append(f"{service}_image: a registry is to provide the image: say which, as NAME@sha256:….")
        elif source == "registry" and not IMAGE_BY_DIGEST.fullmatch(image):
            complaints.append(
                f"{service}_image: {image!r} has no digest, and the registry may have another image by that name: "
                f"write {image.partition('@')[0]}@sha256:… with the digest that `docker buildx imagetools inspect "
                f"{image}` or `docker pull {image}` shows."
            )
    archives = str(values.get("mlops_image_archives") or "")
    if archived and not archives:
        complaints.append(f"mlops_image_archives: name the directory on the controller that has {', '.join(archived)}.")
    elif archived and Path(archives).expanduser().is_dir():
        # One that is not there has its own complaint.
        complaints += _unknown_checksums(Path(archives).expanduser(), archived)
    return complaints


def _unknown_checksums(directory: Path, archives: Iterable[str]) -> list[str]:
    file = directory / CHECKSUMS
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    known = {line[64:].lstrip(" *") for line in lines if re.match(r"[0-9a-f]{64} [ *]", line)}
    missing = [name for name in archives if name not in known]
    said = f"has no checksum of {', '.join(missing)}" if file.is_file() else "is missing"
    way_out = f"where the archives were saved: sha256sum *.tar > {CHECKSUMS}"
    return [f"mlops_image_archives: {file} {said}: write it {way_out}."] if missing else []


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


def unfit_accounts(values: Mapping[str, Any]) -> list[str]:
    """Complaints about accounts of MLflow that cannot be, or that anybody could guess.

    Args:
        values: values of the settings by name, templates resolved.
    """
    complaints = []
    if password := str(values.get("mlflow_admin_password") or ""):
        complaints += [f"mlflow_admin_password: {reason}" for reason in _unfit_password(password)]
    users = values.get("mlflow_users") or []
    # What is no list of accounts has its own complaint.
    people = [user for user in users if isinstance(user, dict)] if isinstance(users, list) else []
    seen: set[str] = set()
    for user in people:
        name, password = str(user.get("name", "")), str(user.get("password") or "")
        setting = f"mlflow_users: account {name!r}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}", name):
            complaints.append(
                f"{setting}: give a name of letters, digits, '.', '_', '@' and '-', beginning with a letter or a digit."
            )
        elif name in MLFLOW_OWN_ACCOUNTS:
            complaints.append(f"{setting} is the appliance's own: give another name.")
        elif name in seen:
            complaints.append(f"{setting} is there twice: remove one.")
        seen.add(name)
        complaints += [f"{setting}: {reason}" for reason in _unfit_password(password, name)]
    return complaints


def _unfit_password(password: str, name: str = "") -> list[str]:
    if len(password) < MLFLOW_PASSWORD_LENGTH:
        return [f"MLflow refuses a password of fewer than {MLFLOW_PASSWORD_LENGTH} characters: give a longer one."]
    if password != password.strip() or not (password.isascii() and password.isprintable()):
        said = "its password begins or ends with a space, or holds a character that is not plain ASCII"
        return [f"{said}, which not every client sends alike: give one without."]
    if re.sub(r"[^a-z]", "", password.lower()) in {*DEFAULT_PASSWORDS, name.lower()}:
        return ["its password is a well-known default: choose another, and keep it in Ansible Vault."]
    return []


def open_addresses(values: Mapping[str, Any], *, is_local: bool) -> list[str]:
    """Complaints about ports that would be open to a network.

    Args:
        values: values of the settings by name, templates resolved.
        is_local: whether the host is a local target, whose ports the machine publishes on 127.0.0.1 only.
    """
    complaints = []
    by_address: dict[str, list[str]] = {}
    for name in BIND_ADDRESSES:
        text = str(values.get(name, "127.0.0.1"))
        try:
            is_loopback = ipaddress.ip_address(text.strip("[]")).is_loopback
        except ValueError:
            complaints.append(f"{name}: {text!r} is no address: give 127.0.0.1, or remove the setting.")
            continue
        if not (is_loopback or is_local or (name == "nginx_bind_address" and _is_on(values, "nginx_exposed"))):
            by_address.setdefault(text, []).append(name)
    complaints += [
        f"{', '.join(names)}: {text!r} would open ports to a network: leave it at 127.0.0.1 and come through an SSH "
        "tunnel, or through nginx, which nginx_exposed: true opens."
        for text, names in by_address.items()
    ]
    return complaints


def half_open(values: Mapping[str, Any]) -> list[str]:
    """Complaints about an nginx that faces a network without all that this takes, and about networks that are none.

    Args:
        values: values of the settings by name, templates resolved.
    """
    complaints = []
    networks = values.get("nginx_allowed_networks") or []
    for network in networks:
        try:
            ipaddress.ip_network(str(network))
        except ValueError as error:
            complaints.append(
                f"nginx_allowed_networks: {network!r} is no network: {error}: give one such as 10.1.0.0/16 or 10.1.2.3."
            )
    tls = _tls(values)
    has_files = bool(values.get("nginx_tls_certificate") and values.get("nginx_tls_key"))
    has_one = bool(values.get("nginx_tls_certificate")) != bool(values.get("nginx_tls_key"))
    has_tls = tls in {"acme", "own_ca"} or (tls == "files" and has_files)
    if has_one and not _is_on(values, "nginx_exposed"):
        complaints.append("nginx_tls_certificate, nginx_tls_key: one without the other: set both, or neither.")
    elif tls == "files" and not has_files and not _is_on(values, "nginx_exposed"):
        complaints.append("nginx_tls: 'files' needs nginx_tls_certificate and nginx_tls_key: set both.")
    has_client_ca = bool(values.get("nginx_api_client_ca"))
    if has_client_ca and not has_tls:
        complaints.append("nginx_api_client_ca: clients show a certificate over TLS only: set nginx_tls, or remove it.")
    if has_client_ca and _is_on(values, "nginx_api_tokens"):
        complaints.append(
            "nginx_api_client_ca: clients of the model API show a certificate or a token, not both: "
            "remove it, or set nginx_api_tokens: false."
        )
    wanted = {
        "a login (mlflow_login: true)": _is_on(values, "mlflow_login"),
        "TLS (nginx_tls_certificate and nginx_tls_key, or nginx_tls: acme or own_ca)": has_tls,
        "the networks that may come (nginx_allowed_networks, such as [10.1.0.0/16])": bool(networks),
        "tokens or certificates of the model API's clients (nginx_api_tokens: true, or nginx_api_client_ca)": (
            has_client_ca or _is_on(values, "nginx_api_tokens")
        ),
    }
    missing = [name for name, is_there in wanted.items() if not is_there]
    if _is_on(values, "nginx_exposed") and missing:
        complaints.append(
            f"nginx_exposed: it opens MLflow and the model API to a network, and lacks {'; '.join(missing)}. "
            "Set what is missing, or leave it false and come through an SSH tunnel."
        )
    return complaints


def unguarded_signatures(values: Mapping[str, Any]) -> list[str]:
    """Complaints about signatures that anybody could have.

    Args:
        values: values of the settings by name, templates resolved.
    """
    if not _is_on(values, "serving_require_signature") or _is_on(values, "mlflow_login"):
        return []
    complaint = (
        "serving_require_signature: without a login whoever reaches MLflow has the host sign what a training run would "
        "have approved: set mlflow_login: true, or leave it false."
    )
    return [complaint]


def unfit_certificate(values: Mapping[str, Any]) -> list[str]:
    """Complaints about ways to a certificate that contradict each other or cannot lead to one.

    Args:
        values: values of the settings by name, templates resolved.
    """
    tls = _tls(values)
    complaints = []
    if tls != "files" and values.get("nginx_tls_certificate"):
        complaints.append(
            f"nginx_tls: {tls!r} and nginx_tls_certificate contradict each other: remove one; "
            "a certificate of your own is nginx_tls: files."
        )
    if tls != "acme":
        return complaints
    names = [str(name) for name in values.get("mlops_server_names") or []]
    if not any(DNS_NAME.fullmatch(name) for name in names):
        complaints.append(
            f"mlops_server_names: an ACME server gives certificates for DNS names, and {names!r} has none: "
            "add the one by which clients know the host, such as mlops.example.org."
        )
    complaints += [
        f"mlops_server_names: {name!r}: no certificate for all names of a domain is given to who answers on port 80: "
        "name each, or set nginx_tls to files or own_ca."
        for name in names
        if "*" in name
    ]
    address = str(values.get("nginx_bind_address", "127.0.0.1"))
    if address.startswith("127.") or address in {"::1", "[::1]"}:
        complaints.append(
            f"nginx_tls: 'acme' with nginx_bind_address {address!r}: the ACME server has to reach port 80: "
            "set nginx_exposed: true, or nginx_tls: own_ca."
        )
    return complaints


def unfit_pair(certificate: str, key: str) -> list[str]:
    """Complaints about a certificate and a key that no server could show.

    Args:
        certificate: PEM text; the first certificate in it is the server's.
        key: PEM text.
    """
    try:
        shown = x509.load_pem_x509_certificate(certificate.encode()).public_key()
    except ValueError:
        return [
            "nginx_tls_certificate: the file does not begin with a certificate in PEM format: give the whole chain."
        ]
    try:
        own = serialization.load_pem_private_key(key.encode(), password=None).public_key()
    except (TypeError, ValueError):
        return ["nginx_tls_key: the file holds no key in PEM format that opens without a password: give one that does."]
    if own != shown:
        return ["nginx_tls_key: it is not the key of nginx_tls_certificate: give the pair."]
    return []


def _tls(values: Mapping[str, Any]) -> str:
    # What the setting's default says.
    return str(values.get("nginx_tls") or ("files" if values.get("nginx_tls_certificate") else "none"))


def _is_on(values: Mapping[str, Any], name: str) -> bool:
    # What is no boolean is refused by its type.
    return bool(boolean(values.get(name, False), strict=False))


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
        registry: ``url`` of the host's MLflow, and the ``alias`` of registered models that are to be served too.
        packages: Debian packages that the host is to have.
        files: files of the host to tell the content of.
        units: units of the host that are to run.
        calendars: when something is to happen, by setting; empty for what is to happen never.
    """

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Refuse what is wrong, or return what the module saw and the services of this run as facts."""
        task_vars = task_vars or {}
        arguments = self._task.args
        specs = role_options(Path(task_vars["role_path"]).parent)
        tags = task_vars["ansible_run_tags"]
        groups = task_vars["group_names"], arguments["profiles"], arguments["service_groups"]
        values = self._values(task_vars, specs)
        services = wanted_services(tags, *groups)
        if services and values.get("training_schedule") and "training" not in services:
            # Whatever the tags: its timer has to find its image.
            services.append("training")
        complaints = [
            *unknown_tags(tags, arguments["profiles"]),
            *missing_groups(tags, task_vars["groups"], arguments["profile_groups"]),
            *unknown_settings(task_vars, specs, arguments["facts"]),
            *default_passwords(values),
            *unfit_logins(values),
            *unfit_accounts(values),
            *wrong_values(values, specs),
            *wrong_store(arguments["store"], task_vars["group_names"]),
            *wrong_artifacts(
                str(values["mlflow_artifacts_destination"]),
                str(values["mlflow_artifacts_credentials"]),
                own_image=bool(values.get("mlflow_image")),
            ),
            *wrong_model_uri(arguments["model_uri"]),
            *wrong_models(values.get("serving_models")),
            *open_addresses(values, is_local="local_host_name" in task_vars),
            *half_open(values),
            *unguarded_signatures(values),
            *unfit_certificate(values),
            *self._unfit_files(values),
            *unsure_images(values, services),
            *wrong_project(values, Path(task_vars["role_path"]).parents[1] / "app"),
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
                "units": arguments["units"],
                "calendars": {setting: str(time) for setting, time in arguments["calendars"].items() if time},
                "untouched": sorted(set(wanted_services({"all"}, *groups)) - set(services)) if services else [],
                "registry": arguments["registry"] if _is_on(values, "serving_registered_models") else {},
            },
            task_vars=task_vars,
        )
        if not result.get("failed"):
            listed = values.get("serving_models") or []
            others = set(result["registered_models"]) - {entry["name"] for entry in listed}
            _refuse(wrong_models([*listed, *({"name": name} for name in sorted(others))]))
            result["ansible_facts"] = {
                "mlops_services": services,
                "mlops_packages_missing": result.pop("packages_missing"),
                "mlops_file_digests": result.pop("file_digests"),
                "mlops_units_idle": result.pop("units_idle"),
                "mlops_images_present": result.pop("images_present"),
                "mlops_images_listed": result.pop("images_listed"),
                "mlops_networks_present": result.pop("networks_present"),
                "mlops_registered_models": result.pop("registered_models"),
                "mlops_services_present": result.pop("services_present"),
                "mlops_engine_present": result.pop("engine_present"),
                "mlops_store": result.pop("store"),
            }
        return result

    def _unfit_files(self, values: Mapping[str, Any]) -> list[str]:
        paths = [str(values.get(name) or "") for name in ("nginx_tls_certificate", "nginx_tls_key")]
        # Those that are missing have their own complaint.
        if not all(path and Path(path).expanduser().is_file() for path in paths):
            return []
        # As Ansible reads them: the key may be encrypted by Ansible Vault.
        return unfit_pair(*(self._loader.get_text_file_contents(str(Path(path).expanduser())) for path in paths))

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
