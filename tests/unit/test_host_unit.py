"""host_unit writes what differs, keeps secrets secret, and keeps the unit running."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import host_unit
import pytest
from ansible.module_utils.container_host import CommandResult, Host

TIMER = "/etc/systemd/system/sweep.timer"
FILES = [
    {"path": TIMER, "content": "[Timer]\n", "mode": "0644"},
    {"path": "/usr/local/bin/sweep", "content": "#!/bin/sh\n", "mode": "0755"},
]
PASSWORD = {"name": "password", "content": "", "generated": True}


class Machine:
    def __init__(self, root: Path) -> None:
        self.host = Host(self.run, root)
        self.commands: list[str] = []
        self.enabled = self.active = False
        self.refuses = ""
        self.failed = False

    def run(self, command: Sequence[str]) -> CommandResult:
        _, verb, *_ = command
        if verb == "show":
            states = ("active" if self.active else "inactive", "enabled" if self.enabled else "disabled")
            return CommandResult(0, "ActiveState={}\nUnitFileState={}\n".format(*states), "")
        if verb == "is-failed":
            return CommandResult(0 if self.failed else 1, "", "")
        if command[0] == "journalctl":
            return CommandResult(0, "no answer\n", "")
        self.commands.append(" ".join(command[1:]))
        if verb == self.refuses:
            return CommandResult(1, "", "no such unit")
        self.enabled |= verb == "enable"
        self.active |= verb == "restart"
        return CommandResult(0, "", "")

    def apply(self, files: Any = FILES, secrets: Any = (), run: str = "", check_mode: bool = False) -> dict[str, Any]:
        self.commands.clear()
        return host_unit.make_so(self.host, "sweep.timer", files, secrets, run, check_mode=check_mode)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_files_are_written_and_the_unit_runs(machine: Machine) -> None:
    result = machine.apply()
    assert result["changes"] == [TIMER, "/usr/local/bin/sweep", "not enabled", "not running"]
    assert machine.host.mode("/usr/local/bin/sweep") == 0o755
    assert machine.commands == ["daemon-reload", "enable sweep.timer", "restart sweep.timer"]


def test_a_second_run_changes_nothing(machine: Machine) -> None:
    machine.apply(secrets=[PASSWORD])
    result = machine.apply(secrets=[PASSWORD])
    assert result == {"changed": False, "changes": [], "diff": []}
    assert machine.commands == []


def test_only_a_change_of_its_own_file_restarts_the_unit(machine: Machine) -> None:
    machine.apply()
    machine.apply([FILES[0], {**FILES[1], "content": "#!/bin/bash\n"}])
    assert machine.commands == []
    machine.apply([{**FILES[0], "content": "[Timer]\nPersistent=true\n"}, FILES[1]])
    assert machine.commands == ["daemon-reload", "restart sweep.timer"]


def test_a_mode_that_differs_is_put_right(machine: Machine) -> None:
    machine.apply()
    machine.host.path("/usr/local/bin/sweep").chmod(0o777)
    assert machine.apply()["changes"] == ["/usr/local/bin/sweep"]
    assert machine.host.mode("/usr/local/bin/sweep") == 0o755


def test_check_mode_says_the_same_and_writes_nothing(machine: Machine, tmp_path: Path) -> None:
    result = machine.apply(secrets=[PASSWORD], check_mode=True)
    assert TIMER in result["changes"]
    assert machine.commands == []
    assert list(tmp_path.iterdir()) == []


def test_a_generated_secret_is_kept_and_never_shown(machine: Machine) -> None:
    result = machine.apply(secrets=[PASSWORD])
    secret = machine.host.read("/etc/mlops/secrets/password")
    assert secret is not None
    assert len(secret) >= 43
    assert machine.host.mode("/etc/mlops/secrets/password") == 0o600
    assert secret not in str(result)
    machine.apply(secrets=[PASSWORD])
    assert machine.host.read("/etc/mlops/secrets/password") == secret


def test_a_generated_secret_that_is_replaced_is_kept_beside_the_new_one(machine: Machine) -> None:
    machine.apply(secrets=[PASSWORD])
    former = machine.host.read("/etc/mlops/secrets/password")
    result = machine.apply(secrets=[{**PASSWORD, "content": "chosen"}])
    assert "chosen" not in str(result)
    (kept,) = machine.host.path("/etc/mlops/secrets").glob("password.*")
    assert kept.read_text() == former
    assert machine.apply(secrets=[{**PASSWORD, "content": "chosen"}])["changes"] == []


def test_a_secret_without_content_is_removed(machine: Machine) -> None:
    credentials = {"name": "credentials", "content": "KEY=1", "generated": False}
    machine.apply(secrets=[credentials])
    assert machine.host.read("/etc/mlops/secrets/credentials") == "KEY=1"
    machine.apply(secrets=[{**credentials, "content": ""}])
    assert machine.host.read("/etc/mlops/secrets/credentials") is None


def test_files_without_content_are_removed_and_so_is_the_unit_whose_file_that_is(machine: Machine) -> None:
    gone = [{**FILES[0], "content": ""}, FILES[1]]
    assert machine.apply(gone)["changes"] == ["/usr/local/bin/sweep"], "a unit that never was"
    assert machine.commands == []
    machine.apply()
    assert machine.apply(gone, check_mode=True)["changes"] == [TIMER]
    assert machine.commands == []
    result = machine.apply(gone)
    assert result["changes"] == [TIMER]
    assert result["diff"][0]["after"] == ""
    assert machine.commands == ["disable --now sweep.timer", "daemon-reload", "reset-failed sweep.timer"]
    assert machine.host.read(TIMER) is None
    assert machine.apply(gone)["changed"] is False


def test_what_systemd_refuses_is_said(machine: Machine) -> None:
    machine.refuses = "enable"
    with pytest.raises(host_unit.UnitError, match="no such unit"):
        machine.apply()


class TestRun:
    """A service that is run to its end when what it depends on changed."""

    SERVICE = "sweep.service"

    def test_it_runs_after_a_change_of_any_file_and_not_without_one(self, machine: Machine) -> None:
        machine.apply(run=self.SERVICE)
        # Who was cut off in between finds the timer idle, and runs it again.
        assert machine.commands == ["daemon-reload", "start sweep.service", "enable sweep.timer", "restart sweep.timer"]
        machine.apply([FILES[0], {**FILES[1], "content": "#!/bin/bash\n"}], run=self.SERVICE)
        assert machine.commands == ["start sweep.service"]
        machine.apply([FILES[0], {**FILES[1], "content": "#!/bin/bash\n"}], run=self.SERVICE)
        assert machine.commands == []

    def test_one_that_failed_runs_again(self, machine: Machine) -> None:
        machine.apply(run=self.SERVICE)
        machine.failed = True
        assert machine.apply(run=self.SERVICE, check_mode=True)["changes"] == ["failed"]
        assert machine.commands == []
        assert machine.apply(run=self.SERVICE)["changes"] == ["failed"]
        assert machine.commands == ["start sweep.service"]

    def test_what_it_said_is_in_the_error_and_the_timer_tries_again(self, machine: Machine) -> None:
        machine.refuses = "start"
        with pytest.raises(host_unit.UnitError, match=r"sweep.service failed, .*\nno answer"):
            machine.apply(run=self.SERVICE)
        assert machine.enabled
        assert machine.active
