#!/usr/bin/python
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Ansible module: files of the host, and the unit that runs with them."""

from __future__ import annotations

import secrets as random_source
import time
from collections.abc import Sequence
from typing import Any

from ansible.module_utils.container_host import GENERATED_SECRET_BYTES, SECRETS_DIR, DiscreetModule, Host, runner
from ansible.module_utils.container_unit import UNIT_DIR

DOCUMENTATION = r"""
module: host_unit
short_description: Write files of the host and keep the unit running that uses them
description:
  - For the few things that run on the host itself. What runs in a container is M(systemd_container)'s.
  - One task instead of one for each file, because a task costs a third of a second whether it changes anything or not.
options:
  unit:
    description:
      - Unit to enable and start, a timer or a service. It restarts when its own file changes.
      - When its own file is one to remove, it is stopped and disabled.
    type: str
    required: true
  run:
    description: Service to run to its end when something changed or when its last run failed.
    type: str
    default: ""
  files:
    description: Files to write or remove, units among them.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: Absolute path., type: path, required: true}
      content: {description: The whole text. Without it the file is removed., type: str, default: ""}
      mode: {description: Permission bits., type: str, default: "0644"}
  secrets:
    description: Secret files, kept in C(/etc/mlops/secrets/) with mode 0600.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: File name., type: str, required: true}
      content: {description: The secret. Without it the file is removed or generated., type: str, default: ""}
      generated:
        description: Whether the host makes a secret without content, once. One that is replaced is kept beside it.
        type: bool
        default: false
attributes:
  check_mode: {support: full, description: Nothing is written.}
  diff_mode: {support: full, description: Shows the files; of secrets only that they change.}
author: [The mlops-appliance authors]
"""

EXAMPLES = r"""
- name: Old files are removed every night
  host_unit:
    unit: sweep.timer
    files:
      - path: /etc/systemd/system/sweep.timer
        content: "{{ lookup('ansible.builtin.template', 'sweep.timer.j2') }}"
"""

RETURN = r"""
changes:
  description: Paths of files, C(not enabled), C(not running), or C(failed) for what O(run) names.
  returned: always
  type: list
  elements: str
"""

ARGUMENT_SPEC: dict[str, Any] = {
    "unit": {"type": "str", "required": True},
    "run": {"type": "str", "default": ""},
    "files": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "default": ""},
            "mode": {"type": "str", "default": "0644"},
        },
    },
    "secrets": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "no_log": False,
        "options": {
            "name": {"type": "str", "required": True},
            "content": {"type": "str", "default": "", "no_log": True},
            "generated": {"type": "bool", "default": False},
        },
    },
}


HIDDEN = "(a secret, not shown)\n"


class UnitError(Exception):
    """systemd refused, or what was run failed; the message is its own."""


def make_so(
    host: Host,
    unit: str,
    files: Sequence[dict[str, Any]],
    secrets: Sequence[dict[str, Any]] = (),
    run: str = "",
    *,
    check_mode: bool = False,
) -> dict[str, Any]:
    """Write what differs, run what depends on it, and start what does not run.

    Raises:
        UnitError: systemd refused, or what was run failed.
    """
    changes: list[str] = []
    diff: list[dict[str, str]] = []

    def provide(path: str, content: str | None, mode: int, *, secret: bool) -> None:
        before = host.read(path)
        if content == before and (content is None or host.mode(path) == mode):
            return
        changes.append(path)
        shown = [HIDDEN if secret and text else text or "" for text in (before, content)]
        diff.append({"before_header": path, "after_header": path, "before": shown[0], "after": shown[1]})
        if check_mode:
            return
        if content is None:
            host.remove(path)
        else:
            host.write(path, content, mode)

    own_file = f"{UNIT_DIR}/{unit}"
    is_wanted = all(file["content"] for file in files if file["path"] == own_file)
    if not is_wanted and not check_mode and host.read(own_file) is not None:
        # As long as systemd knows it.
        _systemctl(host, "disable", "--now", unit)
    for file in files:
        provide(file["path"], file["content"] or None, int(file["mode"], 8), secret=False)
    for secret in secrets:
        path = f"{SECRETS_DIR}/{secret['name']}"
        content = secret["content"] or None
        if content is None and secret["generated"]:
            content = host.read(path) or random_source.token_urlsafe(GENERATED_SECRET_BYTES)
        elif secret["generated"] and host.read(path) not in {None, content} and not check_mode:
            # What it opens may still be needed: nothing is ever lost.
            host.write(f"{path}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}", host.read(path) or "", 0o600)
        provide(path, content, 0o600, secret=True)

    shown_unit = host.run(["systemctl", "show", "--property=ActiveState,UnitFileState", unit]).out
    state = dict(line.split("=", 1) for line in shown_unit.splitlines() if "=" in line)
    enabled = not is_wanted or state.get("UnitFileState") == "enabled"
    active = not is_wanted or state.get("ActiveState") == "active"
    changed_itself = is_wanted and own_file in changes
    changes += [reason for reason, applies in (("not enabled", not enabled), ("not running", not active)) if applies]
    if run and host.run(["systemctl", "is-failed", run]).rc == 0:
        changes.append("failed")
    if not check_mode:
        if any(path.startswith(UNIT_DIR) for path in changes):
            _systemctl(host, "daemon-reload")
        for path in changes:
            if path.startswith(UNIT_DIR) and host.read(path) is None:
                # One that failed last would stay among the failed; what did not is not known any more.
                host.run(["systemctl", "reset-failed", path.removeprefix(f"{UNIT_DIR}/")])
        try:
            # First: a run of this that is cut off leaves the unit idle, by which the next one knows.
            if run and changes:
                _run_to_its_end(host, run)
        finally:
            if not enabled:
                _systemctl(host, "enable", unit)
            if changed_itself or not active:
                _systemctl(host, "restart", unit)
    return {"changed": bool(changes), "changes": changes, "diff": diff}


def _run_to_its_end(host: Host, service: str) -> None:
    cursor = host.journal_cursor()
    if host.run(["systemctl", "start", service]).rc != 0:
        said = "\n".join(host.journal_since(service, cursor))
        raise UnitError(f"{service} failed, and is tried again by its timer and the next run. It said:\n{said}")


def _systemctl(host: Host, *arguments: str) -> None:
    result = host.run(["systemctl", *arguments])
    if result.rc != 0:
        raise UnitError(f"`systemctl {' '.join(arguments)}` failed: {result.err.strip() or result.out.strip()}")


def main() -> None:
    """Run as an Ansible module."""
    module = DiscreetModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = make_so(Host(runner(module)), **module.params, check_mode=module.check_mode)
    except UnitError as error:
        module.fail_json(msg=f"host_unit {module.params['unit']}: {error}")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
