#!/usr/bin/python
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Ansible module: a container that systemd owns, applied, verified, undone."""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.container_host import (
    DiscreetModule,
    Host,
    Outcome,
    Service,
    ServiceError,
    forget_name,
    runner,
)
from ansible.module_utils.container_unit import ContainerSpec, InvalidSpecError

DOCUMENTATION = r"""
module: systemd_container
short_description: Run a service as a container that systemd owns
description:
  - Makes one service of the appliance so, with its configuration files, secrets and systemd unit.
  - Starts or restarts it only when something it depends on changed, and returns when the container is healthy.
  - When a changed service does not become healthy in time, puts back what last was healthy, restarts that and fails
    with the last log lines.
options:
  name:
    description:
      - The service. Its unit is C(mlops-NAME.service), its container C(mlops-NAME), its DNS alias C(NAME).
      - A model server beside the first is C(serving-MODEL), and the same service to the firewall.
    type: str
    required: true
  state:
    description: Whether the service exists. C(absent) keeps its volumes and its secrets.
    type: str
    choices: [present, absent]
    default: present
  image:
    description: Reference of an image that is on the host. Required when O(state=present).
    type: str
  description:
    description: What the service is, for people who read C(systemctl status). Required when O(state=present).
    type: str
  command:
    description: Arguments for the image's entry point, or the command.
    type: list
    elements: str
    default: []
  environment:
    description: Environment of the container. Everybody who may ask docker can read it; secrets go to O(secrets).
    type: dict
    default: {}
  files:
    description: Configuration files, kept in C(/etc/mlops/NAME/) and mounted read-only.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: File name., type: str, required: true}
      content: {description: The whole text., type: str, required: true}
      target: {description: Path in the container., type: str, required: true}
  secrets:
    description: Secret files, kept in C(/etc/mlops/secrets/) with mode 0600 and readable by the container's user only.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: File name., type: str, required: true}
      target: {description: Path in the container., type: str, required: true}
      content: {description: The secret. Without one the host makes one of its own and keeps it., type: str}
  volumes:
    description:
      - Volumes and directories, as C(name:/path) or C(/host/path:/path:ro).
      - C(/path) alone is a volume without a name, on disk, which is new at each start and goes with its container.
    type: list
    elements: str
    default: []
  tmpfs:
    description: Writable directories in memory and their sizes.
    type: dict
    default: {/tmp: 64m}
  aliases:
    description: Names beside its own that lead to it in the network C(mlops), such as the one that replicas share.
    type: list
    elements: str
    default: []
  publish:
    description: Published ports, as C(address:port:container_port).
    type: list
    elements: str
    default: []
  egress:
    description:
      - Whether it may open connections out of the appliance, and ask for names there. Which services reach one another
        is the role host's C(__host_edges).
    type: bool
    default: false
  after:
    description: Services that are to be ready before this one starts.
    type: list
    elements: str
    default: []
  user:
    description:
      - Numeric user and group of the container's processes, which no other service has; root is refused.
      - The volumes that it writes become theirs when it starts. Required when O(state=present).
    type: str
  capabilities:
    description: Capabilities to keep; say why beside it.
    type: list
    elements: str
    default: []
  read_only:
    description: Whether the container's root file system is read-only.
    type: bool
    default: true
  init:
    description: Whether a tiny init reaps orphans, for programs that do not.
    type: bool
    default: false
  memory:
    description: Memory limit, without swap.
    type: str
    default: 256m
  cpus:
    description: Limit in cores.
    type: float
    default: 1.0
  pids_limit:
    description: Limit of processes and threads.
    type: int
    default: 256
  health:
    description: The check that decides whether the service is healthy. Required when O(state=present).
    type: dict
    suboptions:
      command: {description: Shell command run in the container., type: str, required: true}
      interval: {description: Seconds between two checks., type: int, default: 10}
      timeout: {description: Seconds after which a check has failed., type: int, default: 5}
      retries: {description: Failed checks in a row that make it unhealthy., type: int, default: 3}
  start_timeout:
    description:
      - Seconds that the service may take to become healthy, on a slow and busy machine too. One that ends is noticed at
        once.
    type: int
    default: 300
  stop_timeout:
    description: Seconds that the service may take to stop before it is killed.
    type: int
    default: 20
  reload:
    description:
      - Shell command, run in the container, that has it read O(files) anew and returns when it has. With one, new
        content of files alone does not restart it.
    type: str
    default: ""
  validate:
    description: Command that checks the new configuration in a one-off container before anything is written.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {support: full, description: Nothing is written; O(validate) still runs when the image is there.}
  diff_mode: {support: full, description: Shows the unit and the files; of secrets only that they change.}
author: [The mlops-appliance authors]
"""

EXAMPLES = r"""
- name: MLflow runs
  systemd_container:
    name: mlflow
    description: MLflow tracking server
    image: mlops-mlflow:3f2a9c0d1b4e
    command: [mlflow, server, --host=0.0.0.0]
    user: "10004:10004"
    volumes: ["mlops_mlflow_data:/var/lib/mlflow"]
    publish: ["127.0.0.1:5000:5000"]
    memory: 1g
    health:
      command: curl --fail --silent http://127.0.0.1:5000/health
"""

RETURN = r"""
changes:
  description: What changed, or would change; paths of files, or C(image), C(container), C(not running), C(not healthy),
    C(not enabled).
  returned: always
  type: list
  elements: str
container_id:
  description: Id of the container that runs now.
  returned: always
  type: str
health:
  description: Health of the container that runs now.
  returned: always
  type: str
undone:
  description: What runs after a failed change.
  returned: on failure
  type: str
"""


ARGUMENT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "image": {"type": "str"},
    "description": {"type": "str"},
    "command": {"type": "list", "elements": "str", "default": []},
    "environment": {"type": "dict", "default": {}},
    "files": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "content": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
        },
    },
    "secrets": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,
        "options": {
            "name": {"type": "str", "required": True},
            "target": {"type": "str", "required": True},
            "content": {"type": "str", "no_log": True},
        },
    },
    "volumes": {"type": "list", "elements": "str", "default": []},
    "tmpfs": {"type": "dict", "default": {"/tmp": "64m"}},
    "aliases": {"type": "list", "elements": "str", "default": []},
    "publish": {"type": "list", "elements": "str", "default": []},
    "egress": {"type": "bool", "default": False},
    "after": {"type": "list", "elements": "str", "default": []},
    "user": {"type": "str"},
    "capabilities": {"type": "list", "elements": "str", "default": []},
    "read_only": {"type": "bool", "default": True},
    "init": {"type": "bool", "default": False},
    "memory": {"type": "str", "default": "256m"},
    "cpus": {"type": "float", "default": 1.0},
    "pids_limit": {"type": "int", "default": 256},
    "health": {
        "type": "dict",
        "options": {
            "command": {"type": "str", "required": True},
            "interval": {"type": "int", "default": 10},
            "timeout": {"type": "int", "default": 5},
            "retries": {"type": "int", "default": 3},
        },
    },
    "start_timeout": {"type": "int", "default": 300},
    "stop_timeout": {"type": "int", "default": 20},
    "reload": {"type": "str", "default": ""},
    "validate": {"type": "list", "elements": "str", "default": []},
}


def make_so(module: AnsibleModule, host: Host) -> Outcome:
    """Do what the parameters ask, on this host.

    Raises:
        InvalidSpecError: a parameter cannot work.
        ServiceError: the service could not be made so.
    """
    if module.params["state"] == "absent":
        return Service(host, forget_name(module.params["name"])).remove(check_mode=module.check_mode)
    service = Service(host, ContainerSpec.from_params(module.params), validate=module.params["validate"])
    return service.apply(check_mode=module.check_mode)


def main() -> None:
    """Run as an Ansible module."""
    module = DiscreetModule(
        argument_spec=ARGUMENT_SPEC,
        required_if=[("state", "present", ("image", "description", "health", "user"))],
        supports_check_mode=True,
    )

    try:
        outcome = make_so(module, Host(runner(module)))
    except InvalidSpecError as error:
        module.fail_json(msg=f"systemd_container {module.params['name']}: {error}")
    except ServiceError as error:
        module.fail_json(msg=str(error), **error.details)
    module.exit_json(
        changed=bool(outcome.changes),
        changes=outcome.changes,
        diff=outcome.diff,
        container_id=outcome.observed.container_id,
        health=outcome.observed.health,
    )


if __name__ == "__main__":
    main()
