# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Make a service so on its host: compare, write, start, verify, and undo what does not become healthy."""

from __future__ import annotations

import json
import os
import re
import secrets as random_source
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.container_unit import (
    DOCKER,
    FINGERPRINT_LABEL,
    HEALTH_UNIT,
    OWN_VOLUMES,
    PREFIX,
    SHARED_FILES,
    SHARED_UNITS,
    TARGET,
    UNIT_DIR,
    ContainerSpec,
    Health,
    Secret,
    fingerprint_of,
    render_unit,
    run_options,
    validate_name,
)

SECRETS_DIR = "/etc/mlops/secrets"
STATE_DIR = "/var/lib/mlops"
FINGERPRINT_KEY = f"{SECRETS_DIR}/.fingerprint_key"
GENERATED_SECRET_BYTES = 32
LOG_LINES = 20


class CommandResult(NamedTuple):
    """What a command left: exit status, standard output, standard error."""

    rc: int
    out: str
    err: str


Run = Callable[[Sequence[str]], CommandResult]


def runner(module: AnsibleModule) -> Run:
    """How the modules run commands: a program that is not there has status 127, as docker on a fresh host."""

    def run(command: Sequence[str]) -> CommandResult:
        try:
            return CommandResult(*module.run_command(list(command), handle_exceptions=False))
        except OSError as error:
            return CommandResult(127, "", str(error))

    return run


class DiscreetModule(AnsibleModule):  # type: ignore[misc]  # Ansible is not typed
    """A module that writes no argument into the host's journal.

    Ansible hides a secret there only as it was given: one of several lines appears with its line breaks escaped.
    """

    def _log_invocation(self) -> None:
        self.log("Invoked; its arguments are not logged, because they may be secrets.")


class ServiceError(Exception):
    """The service could not be made so; the message says why, and what runs now."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


@dataclass(frozen=True)
class Observed:
    """What docker and systemd say about a service.

    Attributes:
        engine: whether docker answers.
        wanted_image_id: id of the image that the service is to have, empty when it is not on the host.
        active: systemd's ActiveState, such as ``active`` or ``failed``.
        enabled: whether the unit starts with the host.
        container_id: id of the container, empty when there is none.
        image_id: id of the image the container was made from.
        fingerprint: the fingerprint the container was made with.
        health: docker's health status, such as ``healthy``; empty without a container.
        idle: shared units that do not run, or would not after a reboot.
    """

    engine: bool = False
    wanted_image_id: str = ""
    active: str = "inactive"
    enabled: bool = False
    container_id: str = ""
    image_id: str = ""
    fingerprint: str = ""
    health: str = ""
    idle: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a call changed, or in check mode would change."""

    changes: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)


@dataclass(frozen=True)
class FileVersion:
    """One file of a service: its content and its permissions."""

    content: str
    mode: int
    secret: bool = False


# Every file of a service by its path on the host.
Files = dict[str, FileVersion]


class Host:
    """The files below one root, and the commands, that a service is made of.

    Args:
        run: runs a command to its end and returns its result; never raises for a failed command.
        root: the root of the file system, another directory in tests.
    """

    def __init__(self, run: Run, root: Path = Path("/")) -> None:
        self.run = run
        self.root = root

    def path(self, absolute: str) -> Path:
        """Where a path of the host lies below the root."""
        return self.root / absolute.lstrip("/")

    def read(self, absolute: str) -> str | None:
        """The text of a file, or None when there is none."""
        try:
            return self.path(absolute).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def mode(self, absolute: str) -> int | None:
        """The permission bits of a file, or None when there is none."""
        try:
            return self.path(absolute).stat().st_mode & 0o777
        except FileNotFoundError:
            return None

    def write(self, absolute: str, content: str, mode: int) -> None:
        """Replace a file whole, so that nobody ever reads half of it or reads a secret too early."""
        path = self.path(absolute)
        path.parent.mkdir(parents=True, exist_ok=True)
        if mode == 0o600:
            path.parent.chmod(0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(temporary).chmod(mode)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def remove(self, absolute: str) -> None:
        """Remove a file, if it is there."""
        self.path(absolute).unlink(missing_ok=True)

    # -- docker and systemd ---------------------------------------------------------------------------------------

    def look(self, container: str, unit: str, image: str = "") -> Observed:
        """What docker and systemd say about a service, and systemd about the units that all share.

        Args:
            container: name of the container.
            unit: name of the unit.
            image: reference of the image that the service is to have.
        """
        # One look at both kinds: what is not there is left out of the answer.
        inspected = self.run([DOCKER, "inspect", *filter(None, (container, image))])
        documents: list[dict[str, Any]] = json.loads(inspected.out or "[]")
        present: dict[str, Any] = next((document for document in documents if "State" in document), {})
        wanted: dict[str, Any] = next((document for document in documents if "RepoTags" in document), {})
        units = (unit, *SHARED_UNITS)
        shown = self.run(["systemctl", "show", "--property=ActiveState,UnitFileState", *units])
        # One block of lines for each unit, in their order, with a blank line between.
        blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.out.split("\n\n")]
        states = dict(zip(units, blocks, strict=False))
        properties = states.get(unit, {})
        health = present.get("State", {}).get("Health") or {}
        return Observed(
            engine=bool(documents) or self.run([DOCKER, "version"]).rc == 0,
            wanted_image_id=wanted.get("Id", ""),
            active=properties.get("ActiveState", "inactive"),
            enabled=properties.get("UnitFileState") == "enabled",
            container_id=present.get("Id", ""),
            image_id=present.get("Image", ""),
            fingerprint=present.get("Config", {}).get("Labels", {}).get(FINGERPRINT_LABEL, ""),
            health=health.get("Status", ""),
            idle=tuple(
                name
                for name in SHARED_UNITS
                if states.get(name) != {"ActiveState": "active", "UnitFileState": "enabled"}
            ),
        )

    def journal_cursor(self) -> str:
        """A place in the journal, to read from later."""
        result = self.run(["journalctl", "--lines=0", "--show-cursor", "--quiet"])
        return result.out.rpartition("cursor: ")[2].strip()

    def journal_since(self, unit: str, cursor: str) -> list[str]:
        """The last lines that a unit wrote after a place in the journal."""
        position = [f"--after-cursor={cursor}"] if cursor else []
        result = self.run(["journalctl", f"--unit={unit}", "--output=cat", f"--lines={LOG_LINES}", *position])
        return result.out.splitlines()


class Service:
    """One service on one host.

    Args:
        host: the host.
        spec: what the service is to be.
        validate: a command run in a one-off container with the new configuration before anything is written; empty
            for none.
    """

    def __init__(self, host: Host, spec: ContainerSpec, validate: Sequence[str] = ()) -> None:
        self.host = host
        self.spec = spec
        self.validate = list(validate)
        self.unit_path = f"{UNIT_DIR}/{spec.unit}"
        self.state_path = f"{STATE_DIR}/{spec.name}.json"

    def apply(self, check_mode: bool = False) -> Outcome:
        """Make the service so, and return when it is healthy.

        Args:
            check_mode: change nothing; say what would change.

        Raises:
            ServiceError: the service could not be made so. What ran before runs again, if anything did.
        """
        host, spec = self.host, self.spec
        observed = host.look(spec.container, spec.unit, spec.image)
        image_id = observed.wanted_image_id
        if not image_id and not check_mode:
            missing = f"image {spec.image} is not on the host"
            if not observed.engine:
                missing = "the container engine does not answer"
            raise ServiceError(f"{spec.unit} cannot start: {missing}. Run site.yml, whose role images provides it.")

        wanted, fingerprint = self._wanted(image_id, check_mode)
        former, good = self._present(wanted), self._last_good()
        outcome = Outcome(observed=observed)
        self._compare(former, wanted, outcome)
        restart = [
            reason
            for reason, applies in (
                ("image", bool(observed.container_id) and observed.image_id != image_id),
                ("container", bool(observed.container_id) and observed.fingerprint != fingerprint),
                ("not reloaded", bool(spec.reload) and former == wanted and good not in (None, wanted)),
                ("not running", observed.active not in {"active", "activating"} or not observed.container_id),
                ("not healthy", observed.health == "unhealthy"),
            )
            if applies
        ]
        changed = bool(outcome.changes or restart)
        reload = not restart and self._can_reload(observed, outcome.changes) and former == good
        outcome.changes += restart
        if not observed.enabled:
            outcome.changes.append("not enabled")
        shared = {path: FileVersion(*version) for path, version in SHARED_FILES.items()}
        shared_former = self._read(shared)
        self._compare(shared_former, shared, outcome)
        outcome.changes += observed.idle

        if changed and self.validate and image_id:
            self._run_validation(wanted)
        if check_mode:
            return outcome

        self._provide_shared(shared_former, shared, observed.idle)
        if reload and self._reload(former, wanted):
            return outcome
        if changed:
            self._replace(former, wanted, good, outcome)
        elif observed.health != "healthy":
            self._await_start()
        elif not observed.enabled:
            self._systemctl("enable", spec.unit)
        else:
            return outcome
        outcome.observed = host.look(spec.container, spec.unit)
        return outcome

    def remove(self, check_mode: bool = False) -> Outcome:
        """Stop and forget the service. Its volumes and secrets stay."""
        observed = self.host.look(self.spec.container, self.spec.unit)
        outcome = Outcome(observed=observed)
        present = self._present({})
        self._compare(present, {}, outcome)
        if observed.active in {"active", "activating"}:
            outcome.changes.append("running")
        if not check_mode and outcome.changes:
            self._stop()
            self._systemctl("disable", self.spec.unit)
            for path in present:
                self.host.remove(path)
            shutil.rmtree(self.host.path(self.spec.config_dir), ignore_errors=True)
            self.host.remove(self.state_path)
            self._systemctl("daemon-reload")
            outcome.observed = Observed()
        return outcome

    # -- what is wanted, and what is there ------------------------------------------------------------------------

    def _wanted(self, image_id: str, check_mode: bool) -> tuple[Files, str]:
        host, spec = self.host, self.spec
        files = {f"{spec.config_dir}/{item.name}": FileVersion(item.content, 0o644) for item in spec.files}
        contents = {secret.name: self._secret_content(secret) for secret in spec.secrets}
        for name, content in contents.items():
            files[f"{SECRETS_DIR}/{name}"] = FileVersion(content, 0o600, secret=True)
        key = host.read(FINGERPRINT_KEY)
        if key is None:
            key = random_source.token_hex(GENERATED_SECRET_BYTES)
            if not check_mode:
                host.write(FINGERPRINT_KEY, key, 0o600)
        fingerprint = fingerprint_of(spec, image_id, contents, key.encode())
        files[self.unit_path] = FileVersion(render_unit(spec, fingerprint), 0o644)
        return files, fingerprint

    def _secret_content(self, secret: Secret) -> str:
        if secret.content:
            return secret.content
        return self.host.read(f"{SECRETS_DIR}/{secret.name}") or random_source.token_urlsafe(GENERATED_SECRET_BYTES)

    def _present(self, wanted: Files) -> Files:
        """The service's files as they are: those wanted, the unit, and what an older version left beside them."""
        config_dir = self.host.path(self.spec.config_dir)
        found = [f"{self.spec.config_dir}/{path.name}" for path in config_dir.iterdir()] if config_dir.is_dir() else []
        return self._read([self.unit_path, *wanted, *found])

    def _read(self, paths: Iterable[str]) -> Files:
        present: Files = {}
        for path in paths:
            content, mode = self.host.read(path), self.host.mode(path)
            if content is not None and mode is not None:
                present[path] = FileVersion(content, mode, secret=path.startswith(SECRETS_DIR))
        return present

    def _compare(self, former: Files, wanted: Files, outcome: Outcome) -> None:
        for path in sorted({*former, *wanted}):
            before, after = former.get(path), wanted.get(path)
            if before == after:
                continue
            outcome.changes.append(path)
            hidden = any(version and version.secret for version in (before, after))
            outcome.diff.append(
                {
                    "before_header": path,
                    "after_header": path,
                    "before": _shown(before, hidden, "former"),
                    "after": _shown(after, hidden, "new"),
                }
            )

    def _can_reload(self, observed: Observed, changes: Sequence[str]) -> bool:
        """Whether nothing changed but the content of files that a running service can read anew."""
        files = {f"{self.spec.config_dir}/{item.name}" for item in self.spec.files}
        runs = observed.health == "healthy" and observed.enabled
        return bool(self.spec.reload) and runs and bool(changes) and files.issuperset(changes)

    def _run_validation(self, wanted: Files) -> None:
        """Run the validation command on the new configuration, in a container made like the service's.

        Raises:
            ServiceError: the command refused the configuration.
        """
        spec = self.spec
        uid, gid = (int(part) for part in spec.user.split(":"))
        with tempfile.TemporaryDirectory(prefix="mlops-validate-", dir=self.host.path("/run")) as directory:
            staged = Path(directory)
            for path, version in wanted.items():
                if path != self.unit_path:
                    copy = staged / Path(path).name
                    copy.write_text(version.content, encoding="utf-8")
                    copy.chmod(0o400)
                    if os.geteuid() == 0:
                        os.chown(copy, uid, gid)
            options = run_options(spec, config_dir=directory, secrets_dir=directory)
            run = [DOCKER, "run", "--rm", "--pull=never", "--network=none"]
            result = self.host.run([*run, *options, spec.image, *self.validate])
        if result.rc != 0:
            # Some programs give the reason on one and the verdict on the other.
            said = "\n".join([result.out, result.err]).strip().replace(directory, spec.config_dir)
            raise ServiceError(f"{spec.unit}: `{' '.join(self.validate)}` refuses the new configuration: {said}")

    def _provide_shared(self, former: Files, wanted: Files, idle: Sequence[str]) -> None:
        """Bring the files and units that all services share to the host."""
        changed = {path: version for path, version in wanted.items() if former.get(path) != version}
        if not changed and not idle:
            return
        for path, version in changed.items():
            self.host.write(path, version.content, version.mode)
        self._systemctl("daemon-reload")
        self._systemctl("enable", *SHARED_UNITS)
        # The target alone: what it wants includes services that this run has no business with.
        self._systemctl("start", "--job-mode=ignore-dependencies", TARGET)
        self._systemctl("restart" if changed else "start", HEALTH_UNIT)

    # -- apply, verify, undo --------------------------------------------------------------------------------------

    def _replace(self, former: Files, wanted: Files, good: Files | None, outcome: Outcome) -> None:
        self._write(former, wanted)
        cursor = self._stop()
        if self._start():
            self._remember(wanted)
            return
        log = self.host.journal_since(self.spec.unit, cursor)
        state = self._undo(wanted, good)
        raise ServiceError(
            f"{self.spec.unit} did not become healthy (it has {self.spec.start_timeout} s). "
            f"Changed: {', '.join(outcome.changes)}. {state}\nIts last log lines:\n" + "\n".join(log),
            changes=outcome.changes,
            undone=state,
        )

    def _reload(self, former: Files, wanted: Files) -> bool:
        """Have the service read its files anew; false when it does not."""
        for path, version in wanted.items():
            if former.get(path) != version:
                # In place: the container has this very file, whatever its name leads to later.
                self.host.path(path).write_text(version.content, encoding="utf-8")
        if self._systemctl("reload", self.spec.unit, required=False).rc != 0:
            return False
        self._remember(wanted)
        return True

    def _await_start(self) -> None:
        """Nothing to change, but a start is under way: let it end."""
        cursor = self.host.journal_cursor()
        # `systemctl start` joins a start that is under way and returns when it has ended.
        if not self._start():
            log = self.host.journal_since(self.spec.unit, cursor)
            raise ServiceError(f"{self.spec.unit} does not become healthy. Its last log lines:\n" + "\n".join(log))

    def _write(self, former: Files, wanted: Files) -> None:
        for path, version in wanted.items():
            if former.get(path) != version:
                self.host.write(path, version.content, version.mode)
        for path in former.keys() - wanted.keys():
            self.host.remove(path)
        self._systemctl("daemon-reload")

    def _stop(self) -> str:
        """Stop the unit; returns the place in the journal where its next start begins."""
        self._systemctl("stop", self.spec.unit, required=False)
        self._systemctl("reset-failed", self.spec.unit, required=False)
        return self.host.journal_cursor()

    def _start(self) -> bool:
        """Start the unit, now and with the host; says whether it became healthy."""
        self._systemctl("enable", self.spec.unit)
        return self._systemctl("start", self.spec.unit, required=False).rc == 0

    def _undo(self, failed: Files, good: Files | None) -> str:
        """Put back what was last healthy; without it, leave the service stopped. Says which."""
        if good is None:
            self._stop()
            self._systemctl("disable", self.spec.unit, required=False)
            self.host.remove(self.unit_path)
            self._systemctl("daemon-reload")
            return "It never ran before, so it is stopped; correct its settings and run again."
        # A secret that the failed version added is not the former's to delete: nothing is ever lost.
        self._write({path: version for path, version in failed.items() if not version.secret}, good)
        self._stop()
        # A unit of an older version does not take its volumes back by itself.
        former_user = re.search(r"--user=([0-9]+:[0-9]+)", good[self.unit_path].content)
        if former_user and self.spec.owned_volumes:
            self.host.run([OWN_VOLUMES, former_user[1], *self.spec.owned_volumes])
        if self._start():
            return "The former service is running again."
        return f"The former service was put back, but does not start either: see journalctl -u {self.spec.unit}."

    def _last_good(self) -> Files | None:
        """The files with which the service was last healthy, also when a later run was cut off half-way."""
        text = self.host.read(self.state_path)
        if text is None:
            return None
        return {path: FileVersion(**version) for path, version in json.loads(text).items()}

    def _remember(self, files: Files) -> None:
        document = {
            path: {"content": version.content, "mode": version.mode, "secret": version.secret}
            for path, version in files.items()
        }
        self.host.write(self.state_path, json.dumps(document), 0o600)

    def _systemctl(self, *arguments: str, required: bool = True) -> CommandResult:
        result = self.host.run(["systemctl", *arguments])
        if required and result.rc != 0:
            raise ServiceError(f"`systemctl {' '.join(arguments)}` failed: {result.err.strip() or result.out.strip()}")
        return result


def forget_name(name: str) -> ContainerSpec:
    """The specification of a service of which only the name matters, since it is to be removed."""
    validate_name(name)
    return ContainerSpec(name=name, image=f"{PREFIX}-{name}", description=name, health=Health(command="true"), user="")


def _shown(version: FileVersion | None, hidden: bool, which: str) -> str:
    if version is None:
        return ""
    content = f"(the {which} secret, not shown)\n" if hidden else version.content
    return content if content.endswith("\n") else f"{content}\n"
