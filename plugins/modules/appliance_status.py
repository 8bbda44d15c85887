#!/usr/bin/python
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Ansible module: how the services of an appliance are."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from datetime import datetime, timedelta
from http.client import HTTPConnection, HTTPException
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.container_host import Host, runner
from ansible.module_utils.container_unit import DOCKER, PREFIX, UNIT_DIR, UNIT_LABEL

DOCUMENTATION = r"""
module: appliance_status
short_description: Tell how the services of an appliance are
description:
  - Looks at every unit of the appliance, at its container and at the model that is served, and tells what the last
    check for known holes found and what the schedule of training does. Changes nothing.
options: {}
attributes:
  check_mode: {support: full, description: It only looks.}
author: [The mlops-appliance authors]
"""

EXAMPLES = r"""
- name: Services are looked at
  appliance_status:
  register: looked
"""

RETURN = r"""
units:
  description: One entry for each unit; its C(unit), C(state), C(health), C(since), C(restarts), C(image), C(version),
    C(memory), C(port).
  returned: always
  type: list
  elements: dict
installed:
  description: Names of the units that start with the host unless they were stopped on purpose.
  returned: always
  type: list
  elements: str
models:
  description: What is served; C(server), C(name), C(version), C(since), C(notice).
  returned: always
  type: list
  elements: dict
problems:
  description: What should be up and is not; one sentence each.
  returned: always
  type: list
  elements: str
lines:
  description: All of it as text for people.
  returned: always
  type: list
  elements: str
"""

NOTHING = "-"
MODEL_PORT = 8000
MODEL_TIMEOUT = 3
# Written by the role components.
COMPONENTS_STATUS = "/var/lib/mlops/components/status"
# Written by the role training, where it has a schedule.
TRAINING_METRICS = "/var/lib/mlops/metrics/mlops_training_schedule.prom"
TRAINING_TIMER = f"{PREFIX}-training.timer"
PROPERTIES = "Id,ActiveState,UnitFileState,StateChangeTimestamp,NRestarts,Result"


@dataclass(frozen=True)
class Unit:
    """One row of the table: what systemd and docker say about a unit."""

    unit: str
    state: str
    health: str = NOTHING
    since: str = NOTHING
    restarts: str = NOTHING
    image: str = NOTHING
    version: str = NOTHING
    memory: str = NOTHING
    port: str = NOTHING


@dataclass(frozen=True)
class Model:
    """What one model server serves."""

    server: str
    name: str
    version: str
    since: str
    notice: str = NOTHING
    """Why it serves none, or not the champion, or a model that does not answer its own example."""


def unit_files(host: Host) -> list[str]:
    """The appliance's own units: services, and timers with the services that they start."""
    directory = host.path(UNIT_DIR)
    return sorted(path.name for kind in ("service", "timer") for path in directory.glob(f"{PREFIX}-*.{kind}"))


def unit_properties(host: Host, units: Sequence[str]) -> list[dict[str, str]]:
    """What systemd says about units, in their order."""
    if not units:
        return []
    shown = host.run(["systemctl", "show", "--timestamp=unix", f"--property={PROPERTIES}", *units]).out
    return [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n")]


def containers(host: Host) -> dict[str, dict[str, Any]]:
    """The appliance's containers by unit, as ``docker inspect`` tells of them."""
    ids = host.run([DOCKER, "ps", "--all", "--quiet", f"--filter=label={UNIT_LABEL}"]).out.split()
    # One that went away in between is left out of the answer.
    documents = json.loads(host.run([DOCKER, "inspect", *ids]).out or "[]") if ids else []
    return {document["Config"]["Labels"][UNIT_LABEL]: document for document in documents}


def memory_used(host: Host, pid: int) -> int:
    """Bytes that the container of a process uses, without the page cache it could give back; 0 when it is gone.

    Source: the same sum as `docker stats` shows, from the files of either version of cgroups.
    """
    for line in (host.read(f"/proc/{pid}/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        directory = f"/sys/fs/cgroup/{controllers}{path}"
        used = host.read(f"{directory}/memory.current") or host.read(f"{directory}/memory.usage_in_bytes")
        if used is None:
            continue
        rows = (row.split() for row in (host.read(f"{directory}/memory.stat") or "").splitlines())
        counted = {name: int(value) for name, value in rows}
        return int(used) - counted.get("total_inactive_file", counted.get("inactive_file", 0))
    return 0


def describe(host: Host, properties: dict[str, str], container: dict[str, Any] | None) -> Unit:
    """The row of a unit."""
    state = properties["ActiveState"]
    if state == "inactive" and properties["UnitFileState"] == "disabled":
        state = "down"
    since = _time(properties.get("StateChangeTimestamp", ""))
    if container is None:
        return Unit(properties["Id"], state, since=since)
    # A tag or a digest; the colon of a registry's port is before a slash.
    image, tag = re.fullmatch(r"(.+?)(?:[:@]([^/]+))?", container["Config"]["Image"]).groups()  # type: ignore[union-attr]
    labels = container["Config"]["Labels"]
    bindings = (container["NetworkSettings"]["Ports"] or {}).values()
    # Docker lists a port of all addresses once more for IPv6.
    ports = dict.fromkeys(f"{entry['HostIp']}:{entry['HostPort']}" for ports in bindings for entry in ports or [])
    used, limit = memory_used(host, container["State"]["Pid"]), container["HostConfig"]["Memory"]
    return Unit(
        unit=properties["Id"],
        state=state,
        health=(container["State"].get("Health") or {}).get("Status", NOTHING),
        since=since,
        restarts=properties.get("NRestarts", NOTHING),
        image=image,
        version=labels.get("org.opencontainers.image.version") or tag or NOTHING,
        memory=f"{used >> 20}/{limit >> 20} MiB",
        port=" ".join(port for port in ports if not port.startswith("::")) or NOTHING,
    )


def problem(row: Unit, properties: dict[str, str], has_container: bool) -> str:
    """What is wrong with a unit that should be up; empty when it is, or need not be."""
    if row.state == "failed":
        return f"{row.unit} has failed ({properties.get('Result', 'unknown')}): journalctl -u {row.unit}"
    if properties["UnitFileState"] != "enabled":
        return ""
    if row.state != "active":
        return f"{row.unit} is {row.state}: it should be active"
    if has_container and row.health != "healthy":
        return f"{row.unit} is active, but its container is {row.health}"
    return ""


def served_models(running: dict[str, dict[str, Any]]) -> list[Model]:
    """What the model servers serve, asked of each in the container network."""
    found = []
    for unit, container in sorted(running.items()):
        server = unit.removeprefix(f"{PREFIX}-").removesuffix(".service")
        networks = container["NetworkSettings"]["Networks"].values()
        address = next((network["IPAddress"] for network in networks if network["IPAddress"]), "")
        if not server.startswith("serving") or not address:
            continue
        answer = _ask(address)
        found.append(
            Model(
                server,
                str(answer.get("name", "none")),
                str(answer.get("version", NOTHING)),
                str(answer.get("loaded_since", NOTHING)),
                str(answer.get("message") or answer.get("rejected") or answer.get("doubt") or NOTHING),
            )
        )
    return found


def _ask(address: str) -> dict[str, Any]:
    connection = HTTPConnection(address, MODEL_PORT, timeout=MODEL_TIMEOUT)
    try:
        connection.request("GET", "/model")
        return dict(json.loads(connection.getresponse().read()))
    except (OSError, HTTPException, ValueError):
        return {}
    finally:
        connection.close()


def table(rows: Iterable[Unit | Model], kind: type[Unit | Model]) -> list[str]:
    """Rows as lines of text under the names of their columns, as wide as they need."""
    cells = [tuple(column.name for column in fields(kind)), *(astuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def training_schedule(host: Host) -> str:
    """When the schedule's next training run is due, and how its last one ended."""
    lines = (host.read(TRAINING_METRICS) or "").splitlines()
    values = {name.removeprefix("mlops_training_schedule_"): value for name, value in map(str.split, lines)}
    due, ended = (float(values.get(f"{name}_timestamp_seconds", 0)) for name in ("due", "last_run"))
    said = f"Training is due {_moment(due) if due < math.inf else 'never again'}"
    if not ended:
        return f"{said}; the schedule has had no run yet."
    how = "ended well" if float(values["last_run_success"]) else "failed"
    age = timedelta(minutes=(time.time() - ended) // 60)
    return f"{said}; the schedule's last run {how} {_moment(ended)}, {str(age).removesuffix(':00')} hours ago."


def _time(stamp: str) -> str:
    # As systemd shows it with --timestamp=unix; empty for a unit that never changed its state.
    return _moment(int(stamp.removeprefix("@") or 0))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S") if seconds else NOTHING


def look(host: Host) -> dict[str, Any]:
    """Everything that the module returns."""
    running = containers(host)
    rows: list[Unit] = []
    installed: list[str] = []
    problems: list[str] = []
    for properties in unit_properties(host, unit_files(host)):
        if properties["UnitFileState"] in {"enabled", "disabled"}:
            installed.append(properties["Id"])
        row = describe(host, properties, running.get(properties["Id"]))
        # Started by a timer, and of interest when it failed.
        if properties["UnitFileState"] != "static" or row.state != "inactive":
            rows.append(row)
        problems += filter(None, [problem(row, properties, row.unit in running)])
    models = served_models(running)
    lines = table(rows, Unit)
    if models:
        lines += ["", *table(models, Model)]
    if known := host.read(COMPONENTS_STATUS):
        lines += ["", *known.splitlines()]
    if any(row.unit == TRAINING_TIMER and row.state == "active" for row in rows):
        lines += ["", training_schedule(host)]
    if not rows:
        problems = ["there is no appliance on this host: site.yml makes it so"]
    elif all(row.state == "down" for row in rows):
        lines += ["", "Everything was stopped on purpose; the next run of site.yml brings it back."]
    if problems:
        lines += ["", *problems]
    return {
        "units": [asdict(row) for row in rows],
        "installed": installed,
        "models": [asdict(model) for model in models],
        "problems": problems,
        "lines": lines,
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, **look(Host(runner(module))))


if __name__ == "__main__":
    main()
