# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Check the request, the settings and the host in one task, before anything is changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleUndefinedVariable
from ansible.module_utils import settings
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Action half of the module ``preflight``: what the controller knows; the module looks at the host.

    Task arguments:
        profiles: services by tag.
        service_groups: the inventory group that gives a host a service; ``mlops`` for those not named.
        profile_groups: the group that a profile is of no use without.
        ports: published ports, as ``{service: {setting: port}}``.
        facts: names of variables that the appliance sets itself.
        disk_free_mb: free space, in MB, that the host must have; by path.
    """

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        task_vars = task_vars or {}
        arguments = self._task.args
        specs = settings.role_options(Path(task_vars["role_path"]).parent)
        tags = task_vars["ansible_run_tags"]
        services = settings.wanted_services(
            tags,
            task_vars["group_names"],
            arguments["profiles"],
            arguments["service_groups"],
        )
        values = self._values(task_vars, specs)
        complaints = [
            *settings.unknown_tags(tags, arguments["profiles"]),
            *settings.missing_groups(tags, task_vars["groups"], arguments["profile_groups"]),
            *settings.unknown_settings(task_vars, specs, arguments["facts"]),
            *settings.wrong_values(values, specs),
        ]
        _refuse(complaints)

        ports = {
            setting: int(port)
            for service, claims in arguments["ports"].items()
            if service in services
            for setting, port in claims.items()
        }
        _refuse(settings.port_clashes(ports))
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._execute_module(
            module_name="preflight",
            module_args={"ports": ports, "disk_free_mb": arguments["disk_free_mb"]},
            task_vars=task_vars,
        )
        if not result.get("failed"):
            result["ansible_facts"] = {
                "mlops_services": services,
                "mlops_engine_present": result.pop("engine_present"),
            }
        return result

    def _values(self, task_vars: dict[str, Any], specs: dict[str, settings.Options]) -> dict[str, Any]:
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
