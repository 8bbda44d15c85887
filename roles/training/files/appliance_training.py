#!/usr/bin/python3
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Train as the appliance's settings say: for a playbook that waits, and for the timer of a schedule.

One run at a time: who comes second waits. What came of a run is left as metrics, those of the schedule in a file of
their own.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

DOCKER = "docker"
CONTAINER = "mlops-training"
# What systemd-analyze says of a calendar expression; the line in UTC is the last one, on a host with another time too.
NEXT = re.compile(r"Next elapse:.*?([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8})(?:\.[0-9]+)? UTC", re.DOTALL)
# When a run is due of an expression whose times are all past.
NEVER = float("inf")
# How a program ends that SIGTERM stopped, to a shell and to the unit.
TERMINATED = 128 + signal.SIGTERM


class TrainingError(Exception):
    """A run did not end well; what it printed says why."""


@dataclass(frozen=True)
class Settings:
    """What the role gives to this program.

    Attributes:
        run: the command of a run, which ends with it.
        sign: the command that signs what the run approved of; empty where nothing is signed.
        tell: the command by which model servers hear of it; empty where there are none.
        schedule: when the timer starts a run, as systemd's ``OnCalendar`` has it; empty without one.
    """

    run: list[str]
    sign: list[str]
    tell: list[str]
    schedule: str


class Training:
    """Training on one host.

    Args:
        root: the root of the file system, another directory in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        configuration = root / "etc/mlops/training/training.json"
        self.settings = Settings(**json.loads(configuration.read_text(encoding="utf-8")))
        self.place = root / "run/mlops"
        metrics = root / "var/lib/mlops/metrics"
        self.last_run = metrics / "mlops_training.prom"
        self.scheduled = metrics / "mlops_training_schedule.prom"

    def call(self, *command: str) -> int:
        """Run a program to its end, with what it prints going where this program's goes; returns its status."""
        return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode

    def train(self) -> None:
        """Make a run, have signed what it approved of, and tell the model servers.

        Raises:
            TrainingError: the run failed, or its model cannot be signed.
        """
        with self._alone():
            ended_well = False
            try:
                self._call("the run", self.settings.run)
                self._call("signing", self.settings.sign)
                ended_well = True
            finally:
                # One that was stopped leaves its container.
                self._remove_container()
                self._note(self.last_run, _ended("mlops_training_last_run", ended_well))
        if self.settings.tell:
            # One that does not run asks when it starts.
            self.call(*self.settings.tell)

    def tell_when_due(self) -> None:
        """Leave as a metric when the next run of the schedule is due: one that does not begin is late."""
        said = subprocess.run(
            ["systemd-analyze", "calendar", "--", self.settings.schedule],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        due = NEXT.search(said)
        moment = datetime.fromisoformat(due[1]).replace(tzinfo=UTC).timestamp() if due else NEVER
        self._note(self.scheduled, {"mlops_training_schedule_due_timestamp_seconds": moment})

    def tell_result(self, result: str, status: str) -> None:
        """Leave as metrics how a run of the schedule ended.

        Args:
            result: ``SERVICE_RESULT``, as systemd gives it to ``ExecStopPost=``.
            status: ``EXIT_STATUS``, which is not 0 when the run was stopped on purpose.
        """
        ended_well = (result, status) == ("success", "0")
        self._note(self.scheduled, _ended("mlops_training_schedule_last_run", ended_well))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.place.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self.place / "training.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                sys.stderr.write("Another run is under way: this one begins when that has ended.\n")
                fcntl.flock(lock, fcntl.LOCK_EX)
            # What a run left that was killed.
            self._remove_container()
            yield

    def _call(self, what: str, command: Sequence[str]) -> None:
        status = self.call(*command) if command else 0
        if status != 0:
            raise TrainingError(f"{what} failed with status {status}: what was printed above says why.")

    def _remove_container(self) -> None:
        subprocess.run([DOCKER, "rm", "--force", "--volumes", CONTAINER], capture_output=True, check=False)

    def _note(self, file: Path, metrics: Mapping[str, float]) -> None:
        """Write these metrics, and keep the others of the file."""
        former = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        # A former version left comments there.
        kept = dict(line.split() for line in former if not line.startswith("#"))
        values = kept | {name: _number(value) for name, value in metrics.items()}
        file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = file.with_suffix(".new")
        temporary.write_text("".join(f"{name} {value}\n" for name, value in values.items()), encoding="utf-8")
        temporary.chmod(0o644)
        temporary.replace(file)


def _ended(name: str, ended_well: bool) -> dict[str, float]:
    return {f"{name}_timestamp_seconds": time.time(), f"{name}_success": float(ended_well)}


def _number(value: float) -> str:
    return "+Inf" if value == NEVER else f"{value:.0f}"


def _stop(*_: object) -> None:
    sys.exit(TERMINATED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="Train as the appliance's settings say.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="make a run, and return when it has ended")
    commands.add_parser("due", help="leave as a metric when the schedule's next run is due")
    commands.add_parser("result", help="leave as metrics how the schedule's run ended, as ExecStopPost= knows it")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        training = Training()
        if chosen.command == "run":
            training.train()
        elif chosen.command == "due":
            training.tell_when_due()
        else:
            training.tell_result(os.environ["SERVICE_RESULT"], os.environ.get("EXIT_STATUS", ""))
    except (TrainingError, OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
