"""A training run as the host makes it: its container, its program, and what it leaves; with stand-ins for docker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from role_programs import ROLES, loaded
from role_variables import rendered

program = loaded("training", "appliance_training")

SETTINGS = {
    "images_references": {"training": "mlops-training:1"},
    "group_names": ["mlops", "serving"],
    "mlflow_login": True,
    "__host_mac_addresses": {"training": "02:6d:6c:00:01", "signing": "02:6d:6c:00:02"},
    "mlops_services": ["training"],
}
# What systemd-analyze says on a host whose time is not UTC.
CALENDAR = """\
  Original form: 2020-01-01 00:00:00 UTC
Normalized form: Mon..Fri *-*-* 03:00:00
    Next elapse: Fri 2026-11-27 03:00:00 CET
       (in UTC): Fri 2026-11-27 02:00:00 UTC
       From now: 1h 25min left
"""
DUE = "mlops_training_schedule_due_timestamp_seconds"


class TestSettings:
    @pytest.mark.parametrize("name", ["__training_run", "__training_shell"])
    def test_the_container_is_confined_like_the_services(self, name: str) -> None:
        # It runs once and is gone, so a test on the host could not look at it.
        docker, verb, *options = rendered("training", name, **SETTINGS)
        assert (docker, verb) == ("docker", "run")
        values = {key: value for key, _, value in (option.partition("=") for option in options)}
        assert values["--user"] == "10011:10011"
        assert values["--cap-drop"] == "ALL"
        assert values["--security-opt"] == "no-new-privileges"
        assert "--read-only" in values
        assert values["--memory"] == values["--memory-swap"] == "2g"
        assert values["--cpus"] == "2.0"
        assert int(values["--pids-limit"]) <= 512
        assert "size=" in values["--tmpfs"]
        assert not {"--cap-add", "--privileged"} & values.keys()
        assert values["--network"] == "mlops"
        assert values["--mac-address"].startswith("02:6d:6c:00:01:0")
        assert values["--dns"] == "0.0.0.0"

    def test_the_program_takes_what_the_role_gives_it(self) -> None:
        given = rendered("training", "__training_settings", **SETTINGS, training_schedule="daily")
        settings = program.Settings(**json.loads(json.dumps(given)))
        assert settings.run[-1] == "mlops-training:1"
        assert settings.sign == [], "nothing is signed where no signature is required"
        assert settings.tell == ["docker", "kill", "--signal=HUP", "mlops-serving"]
        assert settings.schedule == "daily"

    def test_what_is_required_to_be_signed_is_signed_by_the_host(self) -> None:
        given = rendered("training", "__training_settings", **SETTINGS, serving_require_signature=True)
        assert given["sign"][-3:] == ["promote", "--alias=champion", "models:/code-search@approved"]
        assert "--env=TRAINING_PROMOTION_ALIAS=approved" in given["run"]

    def test_the_schedule_is_units_of_the_host_and_without_one_they_go(self) -> None:
        def units(**settings: Any) -> dict[str, str]:
            files = rendered("training", "__training_files", **SETTINGS, **settings)
            return {Path(file["path"]).name: file["content"] for file in files}

        assert "OnCalendar=Mon..Fri 03:00\n" in units(training_schedule="Mon..Fri 03:00")["mlops-training.timer"]
        without = units()
        for name in ("mlops-training.timer", "mlops-training.service", "mlops_training_schedule.prom"):
            assert without[name] == "", name
        assert without["appliance-training"], "a playbook trains without a schedule, too"

    def test_the_unit_brings_the_account_which_a_reboot_took(self) -> None:
        def unit(**settings: Any) -> str:
            files = rendered("training", "__training_units", **SETTINGS | settings, training_schedule="daily")
            return str(files[0]["content"])

        (mounted,) = (
            option for option in rendered("training", "__training_run", **SETTINGS) if option.endswith("credentials:ro")
        )
        brought = re.findall(r"^ExecStartPre=/usr/bin/install (.*)$", unit(), flags=re.MULTILINE)
        assert [command.split()[-1] for command in brought] == [
            *("/run/mlops/training", mounted.removeprefix("--volume=").partition(":")[0]),
        ]
        assert "--owner=10011 --group=10011 --mode=0400 /etc/mlops/secrets/mlflow_training_credentials" in brought[1]
        assert "install" not in unit(mlflow_login=False)

    def test_a_host_that_no_longer_trains_loses_its_schedule_alone(self) -> None:
        files = rendered("training", "__training_files", **SETTINGS | {"mlops_services": []})
        assert not any(file["content"] for file in files)


class Host:
    """A directory as the host, with a docker that notes what it is asked and does what the test wants."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked = root / "asked"
        (root / "bin").mkdir()
        self.configure()
        self.stand_in("systemd-analyze", f"cat <<'END'\n{CALENDAR}END")
        self.stand_in("docker", 'case "$1" in run) exec sh -c "$2" ;; esac')

    def stand_in(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.asked}\n{script}\n')
        path.chmod(0o755)

    def configure(self, run: str = "exit 0", sign: Sequence[str] = ()) -> None:
        file = self.root / "etc/mlops/training/training.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        tell = ["docker", "kill", "mlops-serving"]
        settings = {"run": ["docker", "run", run], "sign": sign, "tell": tell}
        file.write_text(json.dumps({**settings, "schedule": "daily"}))

    def begin(self, command: str, **environment: str) -> subprocess.Popen[str]:
        """The program in a process of its own, which takes this directory for the root."""
        code = (
            "import functools, pathlib, sys\n"
            f"sys.path.insert(0, {str(ROLES / 'training/files')!r})\n"
            "import appliance_training as it\n"
            f"it.Training = functools.partial(it.Training, pathlib.Path({str(self.root)!r}))\n"
            f"sys.exit(it.main([{command!r}]))"
        )
        return subprocess.Popen(
            [sys.executable, "-B", "-c", code],
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, command: str, **environment: str) -> tuple[int, str]:
        with self.begin(command, **environment) as process:
            _, said = process.communicate(timeout=120)
        return process.returncode, said

    def metrics(self, name: str) -> dict[str, float]:
        file = self.root / f"var/lib/mlops/metrics/{name}.prom"
        return {key: float(value) for key, value in map(str.split, file.read_text().splitlines())}

    def was_asked(self, *programs: str) -> list[str]:
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line for line in lines if line.startswith(programs)]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return Host(tmp_path)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class TestRun:
    def test_a_model_is_signed_and_then_the_model_server_hears_of_it(self, host: Host) -> None:
        host.stand_in("sign", "exit 0")
        host.configure(sign=["sign", "it"])
        assert host.run("run")[0] == 0
        assert host.was_asked("sign", "docker run", "docker kill") == [
            *("docker run exit 0", "sign it", "docker kill mlops-serving"),
        ]
        assert host.metrics("mlops_training")["mlops_training_last_run_success"] == 1

    @pytest.mark.parametrize(
        ("run", "sign", "words"), [("exit 7", "true", "the run failed with status 7"), ("exit 0", "false", "signing")]
    )
    def test_what_fails_is_the_result_and_nobody_hears_of_it(self, host: Host, run: str, sign: str, words: str) -> None:
        host.configure(run, sign=[sign])
        status, said = host.run("run")
        assert status == 1
        assert words in said
        assert host.was_asked("docker kill") == []
        metrics = host.metrics("mlops_training")
        assert metrics["mlops_training_last_run_success"] == 0
        assert metrics["mlops_training_last_run_timestamp_seconds"] > 1_700_000_000

    def test_what_a_former_version_left_is_taken_over(self, host: Host) -> None:
        host.configure()
        file = host.root / "var/lib/mlops/metrics/mlops_training.prom"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("# HELP mlops_training_last_run_success Whether.\nmlops_training_last_run_success 0\n")
        assert host.run("run") == (0, "")
        assert host.metrics("mlops_training")["mlops_training_last_run_success"] == 1

    def test_a_model_server_that_does_not_run_is_no_failure(self, host: Host) -> None:
        host.stand_in("docker", '[ "$1" != kill ]')
        assert host.run("run")[0] == 0

    def test_one_run_at_a_time_and_the_second_waits(self, host: Host) -> None:
        free = host.root / "free"
        host.configure(f"until [ -e {free} ]; do sleep 0.02; done")
        with host.begin("run") as first:
            wait_for(lambda: host.was_asked("docker run"), "the first run begins")
            with host.begin("run") as second:
                assert second.stderr is not None
                assert second.stderr.readline().startswith("Another run is under way")
                assert len(host.was_asked("docker run")) == 1
                free.touch()
                assert second.wait(120) == 0
            assert first.wait(120) == 0
        assert len(host.was_asked("docker run")) == 2

    def test_one_that_is_stopped_leaves_no_container_and_did_not_end_well(self, host: Host) -> None:
        host.configure("exec sleep 600")
        with host.begin("run") as process:
            wait_for(lambda: host.was_asked("docker run"), "the run begins")
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 143
        assert host.was_asked("docker")[-1] == "docker rm --force --volumes mlops-training"
        assert host.metrics("mlops_training")["mlops_training_last_run_success"] == 0


class TestSchedule:
    def test_when_the_next_run_is_due_is_a_metric(self, host: Host) -> None:
        assert host.run("due")[0] == 0
        assert host.was_asked("systemd-analyze") == ["systemd-analyze calendar -- daily"]
        assert host.metrics("mlops_training_schedule") == {DUE: 1795744800}

    def test_of_times_that_are_past_none_is_due(self, host: Host) -> None:
        host.stand_in("systemd-analyze", "echo '    Next elapse: never'")
        assert host.run("due")[0] == 0
        assert host.metrics("mlops_training_schedule") == {DUE: float("inf")}

    @pytest.mark.parametrize(
        ("result", "status", "success"),
        [("success", "0", 1), ("exit-code", "1", 0), ("success", "143", 0), ("oom-kill", "9", 0)],
    )
    def test_what_came_of_a_run_is_a_metric_beside_it(self, host: Host, result: str, status: str, success: int) -> None:
        host.run("due")
        assert host.run("result", SERVICE_RESULT=result, EXIT_STATUS=status)[0] == 0
        metrics = host.metrics("mlops_training_schedule")
        assert metrics["mlops_training_schedule_last_run_success"] == success
        assert metrics["mlops_training_schedule_last_run_timestamp_seconds"] > 1_700_000_000
        assert metrics[DUE] == 1795744800

    def test_the_unit_calls_the_program_as_it_wants_to_be_called(self) -> None:
        unit = (ROLES / "training/templates/mlops-training.service.j2").read_text()
        called = re.findall(r"^Exec\w+=/usr/local/lib/mlops/appliance-training (\w+)$", unit, flags=re.MULTILINE)
        assert called == ["due", "run", "result"]
        assert f"SuccessExitStatus={program.TERMINATED}" in unit
