"""systemd_container applies, verifies and undoes: what it does to a host, on a simulated docker and systemd."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import systemd_container
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.container_host import DiscreetModule, Service, ServiceError, forget_name
from ansible.module_utils.container_unit import (
    AWAIT_HEALTHY,
    OWN_VOLUMES,
    SHARED_UNITS,
    ConfigFile,
    ContainerSpec,
    Health,
    Secret,
)
from ansible.module_utils.testing import patch_module_args
from machine import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def service(machine: Machine, validate: tuple[str, ...] = (), **changes: Any) -> Service:
    values: dict[str, Any] = {
        "name": "web",
        "image": "image:1",
        "description": "a web server",
        "health": Health("curl localhost"),
        "user": "10020:10020",
        "files": (ConfigFile("web.conf", "port = 80\n", "/etc/web.conf"),),
    }
    return Service(machine.host, ContainerSpec(**{**values, **changes}), validate=validate)


def tree(machine: Machine) -> dict[str, str]:
    return {str(path.relative_to(machine.root)): path.read_text() for path in machine.root.rglob("*") if path.is_file()}


BROKEN = (ConfigFile("web.conf", "port = broken\n", "/etc/web.conf"),)


def breaks_on_new_memory(unit_text: str) -> bool:
    return "--memory=999m" not in unit_text


def never_healthy(unit_text: str) -> bool:
    return not unit_text


class TestApply:
    def test_a_new_service_is_written_enabled_and_started(self, machine: Machine) -> None:
        outcome = service(machine).apply()
        assert outcome.observed.health == "healthy"
        assert machine.active == machine.enabled == {"mlops-web.service", *SHARED_UNITS}
        assert machine.host.read("/etc/mlops/web/web.conf") == "port = 80\n"
        assert "/etc/systemd/system/mlops-web.service" in outcome.changes

    def test_the_script_that_waits_for_health_is_executable(self, machine: Machine) -> None:
        service(machine).apply()
        assert machine.host.mode(AWAIT_HEALTHY) == 0o755

    def test_a_second_run_changes_nothing_and_starts_nothing(self, machine: Machine) -> None:
        service(machine).apply()
        before = tree(machine)
        outcome = service(machine).apply()
        assert outcome.changes == []
        assert machine.starts() == 1
        assert tree(machine) == before

    @pytest.mark.parametrize(
        ("changes", "reported"),
        [
            ({"memory": "512m"}, "/etc/systemd/system/mlops-web.service"),
            ({"files": (ConfigFile("web.conf", "port = 81\n", "/etc/web.conf"),)}, "/etc/mlops/web/web.conf"),
            ({"image": "image:2"}, "image"),
        ],
    )
    def test_one_changed_setting_restarts_the_service_and_is_named(
        self, machine: Machine, changes: dict[str, Any], reported: str
    ) -> None:
        service(machine).apply()
        outcome = service(machine, **changes).apply()
        assert reported in outcome.changes
        assert machine.starts() == 2

    def test_an_image_that_moved_under_its_tag_restarts_the_service(self, machine: Machine) -> None:
        service(machine).apply()
        machine.images["image:1"] = "sha256:rebuilt"
        assert "image" in service(machine).apply().changes

    def test_a_stopped_service_is_started(self, machine: Machine) -> None:
        service(machine).apply()
        machine.run(["systemctl", "stop", "mlops-web.service"])
        machine.run(["systemctl", "disable", "mlops-web.service"])
        assert service(machine).apply().changes == ["not running", "not enabled"]
        assert "mlops-web.service" in machine.active & machine.enabled

    def test_an_unhealthy_service_is_restarted(self, machine: Machine) -> None:
        service(machine).apply()
        machine.containers["mlops-web"]["State"]["Health"]["Status"] = "unhealthy"
        assert service(machine).apply().changes == ["not healthy"]
        assert machine.starts() == 2

    def test_a_file_that_is_no_longer_wanted_goes(self, machine: Machine) -> None:
        service(machine, files=(ConfigFile("old.conf", "x", "/old"), ConfigFile("web.conf", "y", "/new"))).apply()
        outcome = service(machine).apply()
        assert "/etc/mlops/web/old.conf" in outcome.changes
        assert machine.host.read("/etc/mlops/web/old.conf") is None

    def test_a_run_that_died_between_writing_and_restarting_is_finished_by_the_next(self, machine: Machine) -> None:
        service(machine).apply()
        running = dict(machine.containers["mlops-web"])
        service(machine, memory="512m").apply()
        machine.containers["mlops-web"] = running  # as if the restart had not come to pass
        assert service(machine, memory="512m").apply().changes == ["container"]
        assert machine.containers["mlops-web"] != running

    def test_a_missing_image_is_refused_before_anything_is_written(self, machine: Machine) -> None:
        before = tree(machine)
        with pytest.raises(ServiceError, match="image gone:1 is not on the host"):
            service(machine, image="gone:1").apply()
        assert tree(machine) == before


class TestReload:
    """A service that can read its files anew."""

    @staticmethod
    def reloading(machine: Machine, content: str, **changes: Any) -> Service:
        files = (ConfigFile("web.conf", content, "/etc/web.conf"),)
        return service(machine, **{"reload": "kill -HUP 1", "files": files, **changes})

    def test_new_content_of_a_file_restarts_nothing_and_is_in_the_file_that_the_container_has(
        self, machine: Machine
    ) -> None:
        self.reloading(machine, "port = 80\n").apply()
        path = machine.root / "etc/mlops/web/web.conf"
        file = path.stat().st_ino
        assert self.reloading(machine, "port = 8\n").apply().changes == ["/etc/mlops/web/web.conf"]
        assert (path.read_text(), path.stat().st_ino, machine.starts()) == ("port = 8\n", file, 1)
        assert ["systemctl", "reload", "mlops-web.service"] in machine.commands
        assert self.reloading(machine, "port = 8\n").apply().changes == []

    def test_what_is_wrong_is_refused_before_it_is_written(self, machine: Machine) -> None:
        self.reloading(machine, "port = 80\n").apply()
        machine.validation_error = "no such port"
        wrong = self.reloading(machine, "port = 0\n")
        wrong.validate = ["web", "-t"]
        with pytest.raises(ServiceError, match="no such port"):
            wrong.apply()
        assert machine.host.read("/etc/mlops/web/web.conf") == "port = 80\n"

    @pytest.mark.parametrize("changes", [{"memory": "512m"}, {"image": "image:2"}, {"files": ()}])
    def test_anything_else_restarts_it(self, machine: Machine, changes: dict[str, Any]) -> None:
        self.reloading(machine, "port = 80\n").apply()
        self.reloading(machine, "port = 81\n", **changes).apply()
        assert machine.starts() == 2

    def test_one_that_does_not_read_them_is_restarted(self, machine: Machine) -> None:
        self.reloading(machine, "port = 80\n").apply()
        machine.reloads = False
        self.reloading(machine, "port = 81\n").apply()
        assert machine.starts() == 2

    def test_a_file_that_somebody_else_replaced_is_not_what_the_container_has(self, machine: Machine) -> None:
        self.reloading(machine, "port = 80\n").apply()
        machine.host.write("/etc/mlops/web/web.conf", "port = 82\n", 0o644)
        self.reloading(machine, "port = 81\n").apply()
        assert machine.starts() == 2

    def test_a_run_that_died_before_the_reload_is_finished_by_the_next(self, machine: Machine) -> None:
        self.reloading(machine, "port = 80\n").apply()
        machine.host.path("/etc/mlops/web/web.conf").write_text("port = 81\n")
        assert self.reloading(machine, "port = 81\n").apply().changes == ["not reloaded"]
        assert machine.starts() == 2


class TestShared:
    """The target, the health watch and the script that waits: one of each for all services."""

    def test_they_come_with_the_first_service(self, machine: Machine) -> None:
        changes = service(machine).apply().changes
        assert {"/etc/systemd/system/mlops.target", "mlops.target", "mlops-health.service"} <= set(changes)

    def test_a_newer_version_of_them_restarts_no_service(self, machine: Machine) -> None:
        service(machine).apply()
        machine.host.write(AWAIT_HEALTHY, "an older version\n", 0o755)
        assert service(machine).apply().changes == [AWAIT_HEALTHY]
        assert machine.starts() == 1

    def test_a_stopped_health_watch_is_started_and_nothing_else(self, machine: Machine) -> None:
        service(machine).apply()
        machine.active.discard("mlops-health.service")
        assert service(machine).apply().changes == ["mlops-health.service"]
        assert machine.starts() == 1

    def test_the_target_is_started_without_the_services_of_other_profiles(self, machine: Machine) -> None:
        service(machine).apply()
        assert ["systemctl", "start", "--job-mode=ignore-dependencies", "mlops.target"] in machine.commands


class TestUndo:
    def test_a_change_that_does_not_become_healthy_is_undone(self, machine: Machine) -> None:
        service(machine).apply()
        before = tree(machine)
        machine.becomes_healthy = breaks_on_new_memory
        with pytest.raises(ServiceError) as caught:
            service(machine, memory="999m", files=BROKEN).apply()
        assert tree(machine) == before, "every file is as it was"
        assert "mlops-web.service" in machine.active
        assert "The former service is running again." in str(caught.value)
        assert "ValueError: no such setting" in str(caught.value), "the last log lines say why"
        assert "/etc/mlops/web/web.conf" in str(caught.value), "what changed is named"

    def test_the_next_correct_run_repairs(self, machine: Machine) -> None:
        service(machine).apply()
        machine.becomes_healthy = breaks_on_new_memory
        with pytest.raises(ServiceError):
            service(machine, memory="999m").apply()
        assert service(machine, memory="512m").apply().observed.health == "healthy"

    def test_undo_gives_the_volumes_back_to_the_former_user(self, machine: Machine) -> None:
        service(machine, user="10001:10001", volumes=("data:/data",)).apply()
        machine.becomes_healthy = lambda text: "--user=10001:10001" in text
        with pytest.raises(ServiceError, match="The former service is running again"):
            service(machine, volumes=("data:/data",)).apply()
        assert [OWN_VOLUMES, "10001:10001", "data"] in machine.commands

    def test_undo_goes_back_to_what_was_healthy_even_after_a_run_that_was_cut_off(self, machine: Machine) -> None:
        service(machine).apply()
        unit = "/etc/systemd/system/mlops-web.service"
        good = machine.host.read(unit)
        machine.host.write(unit, "half a unit that an interrupted run left\n", 0o644)
        machine.becomes_healthy = breaks_on_new_memory
        with pytest.raises(ServiceError):
            service(machine, memory="999m").apply()
        assert machine.host.read(unit) == good

    def test_a_first_start_that_fails_leaves_the_service_stopped(self, machine: Machine) -> None:
        machine.becomes_healthy = breaks_on_new_memory
        with pytest.raises(ServiceError, match="It never ran before, so it is stopped"):
            service(machine, memory="999m").apply()
        assert "mlops-web.service" not in machine.active | machine.enabled
        assert machine.host.read("/etc/systemd/system/mlops-web.service") is None

    def test_when_the_former_service_does_not_start_either_the_error_says_so(self, machine: Machine) -> None:
        service(machine).apply()
        machine.becomes_healthy = never_healthy
        with pytest.raises(ServiceError, match="does not start either"):
            service(machine, memory="512m").apply()


class TestValidation:
    def test_a_refused_configuration_changes_nothing(self, machine: Machine) -> None:
        service(machine).apply()
        before = tree(machine)
        machine.validation_error = "unknown directive in line 1"
        with pytest.raises(ServiceError, match="unknown directive in line 1"):
            service(machine, validate=("web", "-t"), files=BROKEN).apply()
        assert tree(machine) == before
        assert machine.starts() == 1

    def test_it_sees_the_new_files_in_a_container_as_confined_as_the_service(self, machine: Machine) -> None:
        service(machine, validate=("web", "-t")).apply()
        command = next(command for command in machine.commands if "run" in command)
        assert command[-3:] == ["image:1", "web", "-t"]
        assert {"--cap-drop=ALL", "--read-only", "--user=10020:10020"} <= set(command)

    def test_an_unchanged_service_is_not_validated(self, machine: Machine) -> None:
        service(machine).apply()
        machine.commands.clear()
        service(machine, validate=("web", "-t")).apply()
        assert not [command for command in machine.commands if "run" in command]


class TestSecrets:
    @pytest.mark.parametrize("content", [None, ""])
    def test_a_secret_without_content_is_made_once_and_kept(self, machine: Machine, content: str | None) -> None:
        secrets = (Secret("web_key", "/run/secrets/key", content),)
        service(machine, secrets=secrets).apply()
        made = machine.host.read("/etc/mlops/secrets/web_key")
        assert made is not None
        assert len(made) >= 32
        assert service(machine, secrets=secrets).apply().changes == []
        assert machine.host.read("/etc/mlops/secrets/web_key") == made

    def test_a_secret_that_is_no_longer_given_is_kept(self, machine: Machine) -> None:
        service(machine, secrets=(Secret("web_key", "/run/secrets/key", "hush"),)).apply()
        assert service(machine, secrets=(Secret("web_key", "/run/secrets/key", ""),)).apply().changes == []
        assert machine.host.read("/etc/mlops/secrets/web_key") == "hush"

    def test_secrets_lie_in_files_that_only_root_reads(self, machine: Machine) -> None:
        service(machine, secrets=(Secret("web_key", "/run/secrets/key", "hush"),)).apply()
        assert machine.host.mode("/etc/mlops/secrets/web_key") == 0o600
        assert machine.host.mode("/etc/mlops/secrets") == 0o700
        assert machine.host.mode("/var/lib/mlops/web.json") == 0o600, "the copy for undo is a secret too"

    def test_a_changed_secret_restarts_the_service_and_is_never_shown(self, machine: Machine) -> None:
        service(machine, secrets=(Secret("web_key", "/run/secrets/key", "hush-1"),)).apply()
        outcome = service(machine, secrets=(Secret("web_key", "/run/secrets/key", "hush-2"),)).apply()
        assert "/etc/mlops/secrets/web_key" in outcome.changes
        assert machine.starts() == 2
        assert "hush" not in json.dumps(outcome.diff)
        assert not [command for command in machine.commands if "hush" in " ".join(command)]


class TestCheckMode:
    def test_it_says_what_would_change_and_changes_nothing(self, machine: Machine) -> None:
        service(machine).apply()
        before = tree(machine)
        outcome = service(machine, memory="512m").apply(check_mode=True)
        assert outcome.changes == ["/etc/systemd/system/mlops-web.service", "container"]
        assert "+".join(outcome.diff[0].values()).count("--memory=512m") == 1
        assert tree(machine) == before
        assert machine.starts() == 1

    def test_it_works_on_a_host_without_an_engine(self, machine: Machine) -> None:
        machine.engine = False
        assert "not running" in service(machine).apply(check_mode=True).changes
        assert tree(machine) == {}

    def test_a_converged_service_shows_no_change(self, machine: Machine) -> None:
        service(machine, secrets=(Secret("web_key", "/run/secrets/key"),)).apply()
        outcome = service(machine, secrets=(Secret("web_key", "/run/secrets/key"),)).apply(check_mode=True)
        assert outcome.changes == []
        assert outcome.diff == []


class TestRemove:
    def test_unit_and_configuration_go_and_secrets_stay(self, machine: Machine) -> None:
        service(machine, secrets=(Secret("web_key", "/run/secrets/key"),)).apply()
        outcome = Service(machine.host, forget_name("web")).remove()
        assert "running" in outcome.changes
        assert "mlops-web.service" not in machine.active | machine.enabled
        assert machine.host.read("/etc/mlops/web/web.conf") is None
        assert machine.host.read("/etc/mlops/secrets/web_key") is not None

    def test_what_is_not_there_is_no_change(self, machine: Machine) -> None:
        assert Service(machine.host, forget_name("web")).remove().changes == []


def test_documentation_and_argument_spec_agree() -> None:
    documented = yaml.safe_load(systemd_container.DOCUMENTATION)["options"]
    spec = systemd_container.ARGUMENT_SPEC
    assert documented.keys() == spec.keys()
    for name, option in spec.items():
        for key in ("type", "default", "elements", "choices", "required"):
            assert documented[name].get(key) == option.get(key), f"{name}: {key} differs from its documentation"
        assert documented[name].get("suboptions", {}).keys() == option.get("options", {}).keys()


def test_what_a_module_is_given_is_not_in_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ansible itself would hide a secret of one line, but not this one.
    secret = {"name": "key", "target": "/run/secrets/key", "content": "-----BEGIN KEY-----\nTOP SECRET\n"}
    logged: list[str] = []
    monkeypatch.setattr(AnsibleModule, "log", lambda _, message, **__: logged.append(message))
    with patch_module_args({"name": "web", "state": "absent", "secrets": [secret]}):
        DiscreetModule(argument_spec=systemd_container.ARGUMENT_SPEC)
    assert len(logged) == 1, "the journal says that the module ran"
    assert "TOP SECRET" not in logged[0]
