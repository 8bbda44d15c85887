"""A machine whose docker and systemd are simulated, so that the tests of the module need neither."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.container_host import UNIT_DIR, CommandResult, Host
from ansible.module_utils.container_unit import OWN_VOLUMES


def _always_healthy(unit_text: str) -> bool:
    return bool(unit_text)


@dataclass
class Machine:
    """Docker and systemd of one host, acting on the units that lie in its file system.

    Attributes:
        root: the host's file system.
        images: image ids by reference.
        becomes_healthy: decides from the text of a unit whether its container becomes healthy.
        validation_error: what the validation command says when it refuses; empty when it accepts.
        engine: whether docker answers.
        reloads: whether the command of a unit's reload ends well.
        commands: every command that was run.
        containers: containers by name, as ``docker inspect`` tells of them.
        active: units that are active.
        enabled: units that are enabled.
    """

    root: Path
    images: dict[str, str] = field(default_factory=lambda: {"image:1": "sha256:one", "image:2": "sha256:two"})
    becomes_healthy: Callable[[str], bool] = _always_healthy
    validation_error: str = ""
    engine: bool = True
    reloads: bool = True
    commands: list[list[str]] = field(default_factory=list)
    containers: dict[str, dict[str, Any]] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    enabled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        (self.root / "run").mkdir(exist_ok=True)

    @property
    def host(self) -> Host:
        return Host(self.run, self.root)

    def starts(self) -> int:
        """How often a unit was started."""
        return sum(
            command[:2] == ["systemctl", "start"] and command[-1].endswith("-web.service") for command in self.commands
        )

    def run(self, command: Sequence[str]) -> CommandResult:
        self.commands.append(list(command))
        program, *arguments = command
        answer = {"/usr/bin/docker": self._docker, "systemctl": self._systemctl, "journalctl": self._journalctl}
        if program == OWN_VOLUMES:
            return CommandResult(0, "", "")
        return answer[program](arguments)

    def _docker(self, arguments: list[str]) -> CommandResult:
        if not self.engine:
            return CommandResult(127, "", "No such file or directory")
        match arguments:
            case ["version", *_]:
                return CommandResult(0, "26.1.5\n", "")
            case ["inspect", *names]:
                found = [self.containers[name] for name in names if name in self.containers]
                found += [{"Id": self.images[name], "RepoTags": [name]} for name in names if name in self.images]
                missing = len(names) - len(found)
                return CommandResult(1 if missing else 0, json.dumps(found), "No such object" if missing else "")
            case ["run", *_]:
                return CommandResult(1 if self.validation_error else 0, "", self.validation_error)
        raise AssertionError(f"unexpected: docker {arguments}")

    def _systemctl(self, arguments: list[str]) -> CommandResult:
        unit = arguments[-1]
        match arguments:
            case ["show", "--property=ActiveState,UnitFileState", *units]:
                return CommandResult(0, "\n\n".join(map(self._state, units)) + "\n", "")
            case ["enable", *units]:
                self.enabled.update(units)
            case ["start", *_, "mlops.target"] | ["start" | "restart", "mlops-health.service"]:
                self.active.add(unit)
            case ["disable", _]:
                self.enabled.discard(unit)
            case ["stop", _]:
                self._stop(unit)
            case ["reload", _]:
                return CommandResult(0 if unit in self.active and self.reloads else 1, "", "")
            case ["start", _]:
                return CommandResult(0, "", "") if unit in self.active else self._start(unit)
        return CommandResult(0, "", "")

    def _state(self, unit: str) -> str:
        state = "active" if unit in self.active else "inactive"
        enabled = "enabled" if unit in self.enabled else "disabled"
        return f"ActiveState={state}\nUnitFileState={enabled}"

    def _start(self, unit: str) -> CommandResult:
        self._stop(unit)
        text = (self.root / UNIT_DIR.lstrip("/") / unit).read_text()
        create = next(line for line in text.splitlines() if "docker create" in line)
        words = shlex.split(create.partition("=")[2])
        labels = dict(word.partition("=")[2].split("=", 1) for word in words if word.startswith("--label="))
        if not self.becomes_healthy(text):
            return CommandResult(1, "", f"Job for {unit} failed")
        image = next(image for reference, image in self.images.items() if reference in words)
        self.active.add(unit)
        self.containers[unit.removesuffix(".service")] = {
            "Id": f"container-{self.starts()}",
            "Image": image,
            "Config": {"Labels": labels},
            "State": {"Health": {"Status": "healthy"}},
        }
        return CommandResult(0, "", "")

    def _stop(self, unit: str) -> None:
        self.active.discard(unit)
        self.containers.pop(unit.removesuffix(".service"), None)

    def _journalctl(self, arguments: list[str]) -> CommandResult:
        if "--show-cursor" in arguments:
            return CommandResult(0, "-- cursor: s=1;i=2\n", "")
        return CommandResult(0, "listening on nothing\nValueError: no such setting\n", "")
