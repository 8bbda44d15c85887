#!/usr/bin/python
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Ansible module: look at a host before anything on it is changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.mlflow_api import MlflowError, Server

DOCUMENTATION = r"""
module: preflight
short_description: Look at a host before anything on it is changed
description:
  - Fails, naming the setting, when the host cannot take what the run wants to put on it.
  - Its action plugin checks the request and the settings first, on the controller.
options:
  ports:
    description: Wanted ports by the setting that claims them.
    type: dict
    default: {}
  disk_free_mb:
    description: Free space that must be there, in MB, by path.
    type: dict
    default: {}
  store:
    description: Where MLflow's data are to be, and what to do when they are elsewhere; empty when no MLflow runs.
    type: dict
    default: {}
  packages:
    description: Debian packages that the host is to have.
    type: list
    elements: str
    default: []
  files:
    description: Files of the host to tell the content of.
    type: list
    elements: path
    default: []
  units:
    description: Units of the host that are to run.
    type: list
    elements: str
    default: []
  untouched:
    description: Services of the host that the run leaves alone.
    type: list
    elements: str
    default: []
  registry:
    description:
      - Whose registered models to tell, as C({url, alias}), the address of the host's MLflow and the alias that they
        have to have; empty for none.
    type: dict
    default: {}
  calendars:
    description: When something is to happen, as systemd's C(OnCalendar) has it, by the setting that says so.
    type: dict
    default: {}
attributes:
  check_mode: {support: full, description: It only looks.}
author: [The mlops-appliance authors]
"""

RETURN = r"""
packages_missing:
  description: Those of O(packages) that are not installed.
  returned: success
  type: list
  elements: str
file_digests:
  description: SHA-256 of each of O(files) that is root's and that everybody may read, and empty for the others.
  returned: success
  type: dict
units_idle:
  description: Those of O(units) that do not run.
  returned: success
  type: list
  elements: str
images_present:
  description: References of the container engine's images, by tag and by digest.
  returned: success
  type: list
  elements: str
images_listed:
  description: What a list of components is of, as C(service=reference).
  returned: success
  type: list
  elements: str
networks_present:
  description: Networks of the container engine.
  returned: success
  type: list
  elements: str
services_present:
  description: Services that have a unit on the host.
  returned: success
  type: list
  elements: str
registered_models:
  description: Models with the alias of O(registry), or those that are served, when MLflow does not answer.
  returned: success
  type: list
  elements: str
engine_present:
  description: Whether a container engine answers on the host.
  returned: success
  type: bool
store:
  description: Where MLflow has its data now, C(sqlite), C(postgres) or the address of an external database; empty on a
    host that has none.
  returned: success
  type: str
"""

UNITS = Path("/etc/systemd/system")
LISTENING = "0A"
SUPPORTED = {"debian": 13}

# Written by the role mlflow when MLflow is healthy on its store.
STORE_FILE = Path("/var/lib/mlops/mlflow-store")
# The password of MLflow's administrator, made by the role mlflow.
ADMINISTRATOR = Path("/etc/mlops/secrets/mlflow_admin_password")
# Written by the role components.
COMPONENTS = Path("/var/lib/mlops/components")
STORE_NAMES = {"sqlite": "SQLite", "postgres": "the appliance's PostgreSQL"}


def unreachable(units: Mapping[str, str], untouched: Iterable[str]) -> list[str]:
    """Complaints about services that a former version made and the run leaves so: the firewall would cut them off.

    Args:
        units: texts of the appliance's units by name.
        untouched: services that the run leaves alone.
    """
    former = {name for name, text in units.items() if "docker create" in text and "--mac-address=" not in text}
    cut_off = [service for service in untouched if f"mlops-{service}" in former]
    if not cut_off:
        return []
    complaint = (
        f"tags: a former version made {', '.join(cut_off)}, which this run leaves alone and whose containers the "
        "firewall does not know: make all services anew first, with `make site`, which has no tag."
    )
    return [complaint]


def listed_images(directory: Path) -> list[str]:
    """What a list of components is of, as ``service=reference``; one that cannot be read is made anew.

    Args:
        directory: where the lists are.
    """
    listed = []
    for path in sorted(directory.glob("*.cdx.json")):
        with suppress(ValueError):
            document = json.loads(path.read_text(encoding="utf-8"))
            listed.append(f"{path.name.removesuffix('.cdx.json')}={document['metadata']['component']['name']}")
    return listed


def listening_ports(tables: Iterable[str]) -> set[int]:
    """TCP ports that something listens on.

    Args:
        tables: texts of ``/proc/net/tcp`` and ``/proc/net/tcp6``; their format is in proc(5).
    """
    rows = (line.split() for table in tables for line in table.splitlines()[1:])
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == LISTENING}


def published_ports(inspected: str) -> set[int]:
    """Host ports that containers publish.

    Args:
        inspected: what ``docker inspect`` printed of the containers.
    """
    return {
        int(binding["HostPort"])
        for container in json.loads(inspected or "[]")
        for bindings in (container["HostConfig"]["PortBindings"] or {}).values()
        for binding in bindings or []
        if binding["HostPort"]
    }


def wrong_system(os_release: str) -> list[str]:
    """Complaints about a system that the appliance is not made for.

    Args:
        os_release: the text of ``/etc/os-release``.
    """
    lines = (line.split("=", 1) for line in os_release.splitlines() if "=" in line)
    values = {key: value.strip('"') for key, value in lines}
    system, version = values.get("ID", "unknown"), values.get("VERSION_ID", "0")
    wanted = SUPPORTED.get(system)
    if wanted is not None and int(version.split(".")[0]) >= wanted:
        return []
    return [f"the host runs {system} {version}: the appliance needs Debian 13 or newer (systemd 254, Docker 25)."]


def full_disks(wanted: Mapping[str, int]) -> list[str]:
    """Complaints about file systems with too little room.

    Args:
        wanted: free space in MB by path; the nearest existing parent of a path counts.
    """
    complaints = []
    for path, megabytes in wanted.items():
        place = next(parent for parent in (Path(path), *Path(path).parents) if parent.exists())
        free = shutil.disk_usage(place).free // 1_000_000
        if free < int(megabytes):
            complaints.append(
                f"preflight_disk_free_mb: {path} has {free} MB free and {megabytes} MB are wanted: "
                "free space there, or lower the setting."
            )
    return complaints


def registered_models(server: Server, alias: str) -> list[str]:
    """Names of the registered models that have an alias.

    Raises:
        MlflowError: MLflow does not answer.
    """
    names: list[str] = []
    token = ""
    while True:
        found = server.ask("GET", "registered-models/search", max_results=1000, page_token=token)
        names += [
            model["name"]
            for model in found.get("registered_models", [])
            if alias in {given["alias"] for given in model.get("aliases", [])}
        ]
        token = found.get("next_page_token", "")
        if not token:
            return sorted(names)


def served_models(units: Mapping[str, str]) -> list[str]:
    """Names of the models that the host's model servers are for.

    Args:
        units: texts of the appliance's units by name.
    """
    servers = (text for name, text in units.items() if re.match(r"mlops-serving\b", name))
    words = (shlex.split(line) for text in servers for line in text.splitlines() if "docker create" in line)
    return sorted({word.partition("MODEL_NAME=")[2] for line in words for word in line if "=MODEL_NAME=" in word})


def wrong_calendars(calendars: Mapping[str, str], run: Callable[[list[str]], tuple[int, str, str]]) -> list[str]:
    """Complaints about times that the host's systemd does not understand.

    Args:
        calendars: calendar expressions by the setting that has them.
        run: what runs a command and returns its status, its output and its error output.
    """
    answers = {setting: run(["systemd-analyze", "calendar", "--", time]) for setting, time in calendars.items()}
    return [
        f"{setting}: {calendars[setting]!r} is no time to systemd: {error.strip().splitlines()[-1]}: give one such as "
        "daily, '*-*-* 03:00:00' or 'Mon..Fri 03:00'; `systemd-analyze calendar` tells what it understands."
        for setting, (status, _, error) in answers.items()
        if status != 0
    ]


def missing_packages(wanted: Iterable[str], listed: str) -> list[str]:
    """Packages that are not installed.

    Args:
        wanted: names of packages.
        listed: a line for each, with its name and its status, from dpkg-query. Packages that were removed and left
            their configuration are among them.
    """
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def file_digest(path: Path) -> str:
    """SHA-256 of a file that has the owner and the mode of a configuration file; empty without one."""
    if not path.is_file():
        return ""
    status = path.stat()
    if (status.st_uid, status.st_gid, status.st_mode & 0o7777) != (0, 0, 0o644):
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def present_store(remembered: str, sqlite: Path | None, postgres: Path | None) -> str:
    """Where MLflow has its data; empty when it has none yet or they are gone with their volume.

    Args:
        remembered: what the host remembers; empty on one that was made before hosts did.
        sqlite: MLflow's volume, None when there is none.
        postgres: PostgreSQL's volume, None when there is none.
    """
    has_sqlite = sqlite is not None and (sqlite / "mlflow.db").exists()
    has_postgres = postgres is not None and (postgres / "data").exists()
    remembered = remembered or "sqlite"
    return remembered if {"sqlite": has_sqlite, "postgres": has_postgres}.get(remembered, True) else ""


def refused_store(present: str, wanted: str, change: str) -> list[str]:
    """Complaints about a run that would start MLflow on another store than the one that has its data.

    Args:
        present: the store with the data, as `present_store` tells.
        wanted: the store that the inventory asks for.
        change: the setting ``mlflow_store_change``.
    """
    if present in ("", wanted) or change == "abandon" or (change, present, wanted) == ("migrate", "sqlite", "postgres"):
        return []
    here, there = STORE_NAMES.get(present, present), STORE_NAMES.get(wanted, wanted)
    ways = [
        "To stay, put group postgres and mlflow_backend_store_uri back to what they were.",
        "To leave the data behind, where they are kept: --extra-vars mlflow_store_change=abandon.",
    ]
    if (present, wanted) == ("sqlite", "postgres"):
        ways.insert(0, "To take them along: ansible-playbook playbooks/migrate_to_postgres.yml.")
    return [
        f"mlflow_store_change: the runs and models of this host are in {here}, and the inventory now says {there}, "
        + " ".join(["where MLflow would begin with nothing.", *ways])
    ]


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "ports": {"type": "dict", "default": {}},
            "disk_free_mb": {"type": "dict", "default": {}},
            "store": {"type": "dict", "default": {}},
            "packages": {"type": "list", "elements": "str", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "untouched": {"type": "list", "elements": "str", "default": []},
            "registry": {"type": "dict", "default": {}},
            "calendars": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    complaints = wrong_system(Path("/etc/os-release").read_text(encoding="utf-8"))
    if os.geteuid() != 0:
        complaints.append("ansible_user: tasks need root on the host: log in as root or set ansible_become: true.")
    complaints += full_disks(module.params["disk_free_mb"])
    complaints += wrong_calendars(module.params["calendars"], module.run_command)

    ours: set[int] = set()
    engine_present = False
    networks: list[str] = []
    images: list[str] = []
    docker = module.get_bin_path("docker")
    if docker:
        code, out, _ = module.run_command([docker, "ps", "--quiet", "--filter=label=mlops.unit"])
        engine_present = code == 0
        networks = module.run_command([docker, "network", "ls", "--format={{.Name}}"])[1].split()
        names = "{{.Repository}}:{{.Tag}} {{.Repository}}@{{.Digest}}"
        images = module.run_command([docker, "image", "ls", "--digests", f"--format={names}"])[1].split()
        if out.split():
            ours = published_ports(module.run_command([docker, "inspect", *out.split()])[1])
    written = {path.stem: path.read_text(encoding="utf-8") for path in UNITS.glob("mlops-*.service")}
    complaints += unreachable(written, module.params["untouched"])
    tables = [
        path.read_text(encoding="ascii") for path in map(Path, ("/proc/net/tcp", "/proc/net/tcp6")) if path.exists()
    ]
    taken = listening_ports(tables) - ours
    complaints += [
        f"{setting}: port {port} of the host is in use by another program: stop that, or set {setting} to a free port."
        for setting, port in module.params["ports"].items()
        if int(port) in taken
    ]

    store = module.params["store"]
    present = STORE_FILE.read_text(encoding="utf-8").strip() if STORE_FILE.exists() else ""
    if engine_present:
        stores = ["mlops_mlflow_data", "mlops_postgres_data"]
        # One that is not there is left out of the answer.
        inspected = json.loads(module.run_command([docker, "volume", "inspect", *stores])[1] or "[]")
        volumes = {volume["Name"]: Path(volume["Mountpoint"]) for volume in inspected}
        present = present_store(present, *map(volumes.get, stores))
    if store:
        complaints += refused_store(present, store["wanted"], store["change"])
    if complaints:
        module.fail_json(msg="Nothing was changed. " + "\n".join(complaints))
    registry, registered = module.params["registry"], []
    if registry:
        # Without a login MLflow does not look at it.
        password = ADMINISTRATOR.read_text(encoding="utf-8") if ADMINISTRATOR.exists() else ""
        server = Server(registry["url"], "admin", password)
        try:
            registered = registered_models(server, registry["alias"])
        except MlflowError:
            registered = served_models(written)
    shown = "--showformat=${Package} ${db:Status-Status}\n"
    listed = module.run_command(["dpkg-query", "--show", shown, *module.params["packages"]])[1]
    module.exit_json(
        changed=False,
        engine_present=engine_present,
        packages_missing=missing_packages(module.params["packages"], listed),
        file_digests={path: file_digest(Path(path)) for path in module.params["files"]},
        units_idle=[
            unit for unit in module.params["units"] if module.run_command(["systemctl", "is-active", unit])[0] != 0
        ],
        images_present=images,
        images_listed=listed_images(COMPONENTS),
        networks_present=networks,
        registered_models=registered,
        services_present=sorted(unit.removeprefix("mlops-") for unit in written),
        store=present,
    )


if __name__ == "__main__":
    main()
