# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""What a service is, and the systemd unit that runs it: pure functions, no input or output."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from typing import Any

PREFIX = "mlops"
TARGET = "mlops.target"
HEALTH_UNIT = "mlops-health.service"
FIREWALL_UNIT = "mlops-firewall.service"
UNIT_DIR = "/etc/systemd/system"
AWAIT_HEALTHY = "/usr/local/lib/mlops/await-healthy"
OWN_VOLUMES = "/usr/local/lib/mlops/own-volumes"
RESTART_UNHEALTHY = "/usr/local/lib/mlops/restart-unhealthy"
DOCKER = "/usr/bin/docker"
UNIT_LABEL = "mlops.unit"
FINGERPRINT_LABEL = "mlops.fingerprint"
# The firewall of the role host knows the appliance's containers by it.
MAC_PREFIX = "02:6d:6c"
# Model servers beside the first have one of their own: all of them are `serving` to the firewall.
MODELS_MAC_PREFIX = "06:6d:6c"
MODEL_SERVER = "serving-"
MAX_REPLICA = 127
FORGING_CAPABILITIES = frozenset({"ALL", "NET_ADMIN", "NET_RAW"})

# Seconds for the removal of a container, and for all that comes before and after a start or stop.
REMOVE_TIMEOUT = 30
OVERHEAD_TIMEOUT = 60

OWN_VOLUMES_SCRIPT = """\
#!/bin/sh
# own-volumes UID:GID VOLUME...: a service's volumes are its user's, whoever had them or made them before.
set -eu
owner=$1
shift
for volume; do
    docker volume create "$volume" >/dev/null
    directory=$(docker volume inspect --format '{{.Mountpoint}}' "$volume")
    [ "$(stat --format=%u:%g "$directory")" != "$owner" ] || continue
    # The directory itself comes last, so that what was cut off is finished by the next start.
    find "$directory" -depth -exec chown --no-dereference "$owner" {} +
done
"""

AWAIT_HEALTHY_SCRIPT = """\
#!/bin/sh
# await-healthy CONTAINER SECONDS: ExecStartPost of every appliance unit, so that "started" means "healthy".
container=$1
deadline=$(($(date +%s) + $2))
# systemd sets MAINPID to the attached docker client: when that is gone, so is the container.
until [ "$(docker inspect --format '{{.State.Health.Status}}' "$container" 2>/dev/null)" = healthy ]; do
    if ! kill -0 "$MAINPID" 2>/dev/null; then
        echo "$container exited before it was healthy" >&2
        exit 1
    fi
    if [ "$(date +%s)" -ge "$deadline" ]; then
        echo "$container was not healthy within $2 s; its last health check said:" >&2
        docker inspect --format '{{with .State.Health}}{{range .Log}}{{println .Output}}{{end}}{{end}}' "$container" |
            grep . | tail -n 3 >&2
        # systemd runs no ExecStop for a start that failed, and would wait for the container in vain.
        docker stop "$container" >/dev/null
        exit 1
    fi
    sleep 0.2
done
# Its IP address may have been another's a moment ago: neighbours that remember that one's MAC address learn it anew.
docker inspect --format '{{.State.Pid}} {{(index .NetworkSettings.Networks "mlops").IPAddress}}' "$container" | {
    read -r pid address
    nsenter --target "$pid" --net arping -q -U -c 1 -w 1 -I eth0 "$address" || true
}
"""

RESTART_UNHEALTHY_SCRIPT = f"""\
#!/bin/sh
# restart-unhealthy: systemd sees whether a container runs, Docker whether it is healthy; this joins the two.
restart() {{
    while read -r unit; do
        # One that is starting or stopping is in systemd's hands already.
        systemctl is-active --quiet "$unit" || continue
        echo "$unit is unhealthy: restarting it"
        systemctl restart --no-block "$unit"
    done
}}
since=$(date +%s)
docker ps --filter label={UNIT_LABEL} --filter health=unhealthy --format '{{{{.Label "{UNIT_LABEL}"}}}}' | restart
docker events --since "$since" --filter label={UNIT_LABEL} --filter 'event=health_status: unhealthy' \\
    --format '{{{{index .Actor.Attributes "{UNIT_LABEL}"}}}}' | restart
"""

TARGET_UNIT_TEXT = """\
# Written by Ansible (systemd_container): changes made here are overwritten.
[Unit]
Description=MLOps appliance

[Install]
WantedBy=multi-user.target
"""

HEALTH_UNIT_TEXT = f"""\
# Written by Ansible (systemd_container): changes made here are overwritten.
[Unit]
Description=MLOps appliance: restart what is unhealthy
PartOf={TARGET}
Requires=docker.service
After=docker.service
StartLimitIntervalSec=0

[Service]
ExecStart={RESTART_UNHEALTHY}
Restart=always
RestartSec=1

[Install]
WantedBy={TARGET}
"""

# What all services share, by path: content and mode.
SHARED_FILES = {
    AWAIT_HEALTHY: (AWAIT_HEALTHY_SCRIPT, 0o755),
    OWN_VOLUMES: (OWN_VOLUMES_SCRIPT, 0o755),
    RESTART_UNHEALTHY: (RESTART_UNHEALTHY_SCRIPT, 0o755),
    f"{UNIT_DIR}/{TARGET}": (TARGET_UNIT_TEXT, 0o644),
    f"{UNIT_DIR}/{HEALTH_UNIT}": (HEALTH_UNIT_TEXT, 0o644),
}
SHARED_UNITS = (TARGET, HEALTH_UNIT)

_NAME = re.compile(r"[a-z][a-z0-9_]*|" + MODEL_SERVER + r"[a-z0-9]+(?:-[a-z0-9]+)*(?:_[0-9]+)?")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_MEMORY = re.compile(r"[1-9][0-9]*[kmg]")
_USER = re.compile(r"[0-9]+:[0-9]+")
_PUBLISH = re.compile(r"(?:(?:\[[0-9a-fA-F:]+\]|[0-9.]+):)?(?P<host>[0-9]+):(?P<container>[0-9]+)(?:/(?:tcp|udp))?")
_SYSTEMD_SAFE = re.compile(r"[A-Za-z0-9_@%+=:,./\[\]{}-]+")


class InvalidSpecError(ValueError):
    """A setting of the service cannot be right; the message names the setting, its value and the way out."""


@dataclass(frozen=True)
class Health:
    """The check that decides whether the service is healthy.

    Attributes:
        command: shell command, run inside the container; exit status 0 is healthy.
        interval: seconds between two checks of a running service.
        timeout: seconds after which one check counts as failed.
        retries: failed checks in a row that make the service unhealthy.
    """

    command: str
    interval: int = 10
    timeout: int = 5
    retries: int = 3


@dataclass(frozen=True)
class ConfigFile:
    """A file under ``/etc/mlops/<service>/``, bind-mounted read-only at ``target``."""

    name: str
    content: str
    target: str


@dataclass(frozen=True)
class Secret:
    """A file under ``/etc/mlops/secrets/``, readable in the container at ``target`` and nowhere else.

    ``content`` is None or empty for a secret that the host generates once and keeps.
    """

    name: str
    target: str
    content: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class ContainerSpec:
    """One service: everything that decides how its container runs. Times are in seconds."""

    name: str
    image: str
    description: str
    health: Health
    user: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    files: tuple[ConfigFile, ...] = ()
    secrets: tuple[Secret, ...] = ()
    volumes: tuple[str, ...] = ()
    tmpfs: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    egress: bool = False
    after: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    read_only: bool = True
    init: bool = False
    memory: str = "256m"
    cpus: float = 1.0
    pids_limit: int = 256
    start_timeout: int = 300
    stop_timeout: int = 20
    reload: str = ""

    @property
    def container(self) -> str:
        """Name of the container."""
        return f"{PREFIX}-{self.name}"

    @property
    def unit(self) -> str:
        """Name of the systemd unit."""
        return f"{self.container}.service"

    @property
    def replica(self) -> tuple[str, int]:
        """The service that it is a container of, and its number there: ``serving_2`` is the second of ``serving``."""
        service, _, number = self.name.rpartition("_")
        return (service, int(number)) if service and number.isdecimal() else (self.name, 1)

    @property
    def mac_address(self) -> str:
        """Two bytes for the service, and one for the container's number, with the top bit for a way out."""
        service, number = self.replica
        digest = hashlib.sha256(service.encode()).hexdigest()
        prefix = MODELS_MAC_PREFIX if service.startswith(MODEL_SERVER) else MAC_PREFIX
        return f"{prefix}:{digest[:2]}:{digest[2:4]}:{number | self.egress << 7:02x}"

    @property
    def owned_volumes(self) -> list[str]:
        """Names of the volumes that it writes, and so owns; not those it only reads, nor directories of the host."""
        parts = [volume.split(":") for volume in self.volumes if not volume.startswith("/")]
        return [name for name, _, *mode in parts if "ro" not in mode]

    @property
    def config_dir(self) -> str:
        """Where the configuration files lie on the host."""
        return f"/etc/mlops/{self.name}"

    @property
    def runtime_dir(self) -> str:
        """Where systemd lays readable copies of the secrets: a tmpfs, gone when the unit stops."""
        return f"/run/mlops/{self.name}"

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> ContainerSpec:
        """Build the specification from the parameters of the module.

        Raises:
            InvalidSpecError: a value has the right type but cannot work.
        """
        spec = cls(
            name=params["name"],
            image=params["image"],
            description=params["description"],
            health=Health(**params["health"]),
            command=tuple(params["command"]),
            environment={key: _environment_text(value) for key, value in params["environment"].items()},
            files=tuple(ConfigFile(**item) for item in params["files"]),
            secrets=tuple(Secret(**item) for item in params["secrets"]),
            volumes=tuple(params["volumes"]),
            tmpfs={path: str(size) for path, size in params["tmpfs"].items()},
            aliases=tuple(params["aliases"]),
            publish=tuple(params["publish"]),
            egress=params["egress"],
            after=tuple(params["after"]),
            user=params["user"],
            capabilities=tuple(params["capabilities"]),
            read_only=params["read_only"],
            init=params["init"],
            memory=params["memory"],
            cpus=params["cpus"],
            pids_limit=params["pids_limit"],
            start_timeout=params["start_timeout"],
            stop_timeout=params["stop_timeout"],
            reload=params["reload"],
        )
        validate(spec)
        return spec


def _environment_text(value: Any) -> str:
    # YAML's true is what a person writes; a program expects the lower-case word.
    return str(value).lower() if isinstance(value, bool) else str(value)


def validate_name(name: str) -> None:
    """Raise InvalidSpecError unless ``name`` can name a unit, a container and a DNS alias."""
    _require(_NAME.fullmatch(name), "name", name, "use lower-case letters, digits and underscores")


def validate(spec: ContainerSpec) -> None:
    """Raise InvalidSpecError for the first setting that cannot work."""
    validate_name(spec.name)
    _require(spec.image and not re.search(r"\s", spec.image), "image", spec.image, "give a reference such as name:tag")
    _require("\n" not in spec.description, "description", spec.description, "keep it on one line")
    for alias in spec.aliases:
        _require(_NAME.fullmatch(alias), "aliases", alias, "use lower-case letters, digits and underscores")
    number = spec.replica[1]
    _require(number <= MAX_REPLICA, "name", spec.name, f"number its replicas up to {MAX_REPLICA}")
    _require(_USER.fullmatch(spec.user), "user", spec.user, "give numeric ids, such as 10020:10020")
    _require(
        not spec.user.startswith("0:"), "user", spec.user, "appliance containers never run as root: give another id"
    )
    forging = sorted(FORGING_CAPABILITIES.intersection(spec.capabilities))
    _require(not forging, "capabilities", forging, "with these it could take another's MAC address: leave them out")
    _require(_MEMORY.fullmatch(spec.memory), "memory", spec.memory, "give a size such as 512m or 2g")
    _require(spec.cpus > 0, "cpus", spec.cpus, "give a number above 0, such as 0.5")
    for setting in ("pids_limit", "start_timeout", "stop_timeout"):
        value = getattr(spec, setting)
        _require(value > 0, setting, value, "give a whole number above 0")
    for path, size in spec.tmpfs.items():
        _require(path.startswith("/"), "tmpfs", path, "give an absolute path")
        _require(_MEMORY.fullmatch(size), f"tmpfs[{path}]", size, "give a size such as 64m")
    for port in spec.publish:
        match = _PUBLISH.fullmatch(port)
        numbers = [int(match["host"]), int(match["container"])] if match else [0]
        _require(
            all(0 < number < 65536 for number in numbers), "publish", port, "write it as address:port:container_port"
        )
    for volume in spec.volumes:
        named = 1 <= volume.count(":") <= 2
        anonymous = volume.startswith("/") and ":" not in volume
        way_out = "write it as name:/path or name:/path:ro, or as /path when it may go with its container"
        _require(named or anonymous, "volumes", volume, way_out)
    names = [(file.name, file.target) for file in spec.files] + [(item.name, item.target) for item in spec.secrets]
    for name, target in names:
        _require(_FILE_NAME.fullmatch(name), "file name", name, "use letters, digits, dot, dash, underscore")
        _require(target.startswith("/"), f"target of {name}", target, "give an absolute path")
    for name in spec.after:
        validate_name(name)


def _require(condition: object, setting: str, value: object, way_out: str) -> None:
    if not condition:
        raise InvalidSpecError(f"{setting}: {value!r} cannot work: {way_out}.")


def systemd_quote(argument: str) -> str:
    """Quote one argument for an ``Exec…=`` line so that systemd passes it on to the letter.

    Source: systemd.syntax(7) "Quoting" and systemd.unit(5) "Specifiers".
    """
    escaped = argument.replace("%", "%%").replace("$", "$$")
    if _SYSTEMD_SAFE.fullmatch(escaped):
        return escaped
    for raw, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        escaped = escaped.replace(raw, written)
    return f'"{escaped}"'


def run_options(spec: ContainerSpec, config_dir: str, secrets_dir: str) -> list[str]:
    """The options of ``docker create`` and ``docker run`` that confine and feed the container.

    Args:
        spec: the service.
        config_dir: where the configuration files lie on the host.
        secrets_dir: where the readable copies of the secrets lie on the host.
    """
    options = [
        f"--user={spec.user}",
        "--cap-drop=ALL",
        *(f"--cap-add={capability}" for capability in spec.capabilities),
        "--security-opt=no-new-privileges",
        *(["--read-only"] if spec.read_only else []),
        *(f"--tmpfs={path}:rw,nosuid,nodev,noexec,size={size},mode=1777" for path, size in spec.tmpfs.items()),
        f"--memory={spec.memory}",
        f"--memory-swap={spec.memory}",
        f"--cpus={spec.cpus:g}",
        f"--pids-limit={spec.pids_limit}",
        *(["--init"] if spec.init else []),
        *(f"--env={key}={value}" for key, value in sorted(spec.environment.items())),
        *(f"--volume={_mounted(volume)}" for volume in spec.volumes),
    ]
    mounts = [(f"{config_dir}/{file.name}", file.target) for file in spec.files]
    mounts += [(f"{secrets_dir}/{secret.name}", secret.target) for secret in spec.secrets]
    options += [f"--mount=type=bind,source={source},target={target},readonly" for source, target in mounts]
    return options


def _mounted(volume: str) -> str:
    """How docker mounts a volume: an empty one does not take the owner of the image's directory."""
    if volume.startswith("/"):
        return volume
    return f"{volume},nocopy" if volume.count(":") == 2 else f"{volume}:nocopy"


def create_command(spec: ContainerSpec, fingerprint: str) -> list[str]:
    """The ``docker create`` command line of the service's container."""
    return [
        DOCKER,
        "create",
        f"--name={spec.container}",
        f"--hostname={spec.name}",
        f"--label={UNIT_LABEL}={spec.unit}",
        f"--label={FINGERPRINT_LABEL}={fingerprint}",
        "--pull=never",
        # The attached client hands every line to the journal: a second copy would cost as much again.
        "--log-driver=none",
        *run_options(spec, spec.config_dir, spec.runtime_dir),
        f"--network={PREFIX}",
        # By it the firewall knows who sends.
        f"--mac-address={spec.mac_address}",
        # Docker's resolver asks it for names that are not of the network: who has no way out has none by DNS either.
        *([] if spec.egress else ["--dns=0.0.0.0"]),
        *(f"--network-alias={alias}" for alias in (spec.name, *spec.aliases)),
        *(f"--publish={port}" for port in spec.publish),
        f"--health-cmd={spec.health.command}",
        f"--health-interval={spec.health.interval}s",
        f"--health-timeout={spec.health.timeout}s",
        f"--health-retries={spec.health.retries}",
        # While it starts, a failed check is no verdict and a passed one is seen within a second.
        f"--health-start-period={spec.start_timeout}s",
        "--health-start-interval=1s",
        f"--stop-timeout={spec.stop_timeout}",
        spec.image,
        *spec.command,
    ]


def render_unit(spec: ContainerSpec, fingerprint: str) -> str:
    """The text of the service's systemd unit.

    Args:
        spec: the service.
        fingerprint: what `fingerprint_of` says; it becomes a label of the container.
    """
    dependencies = [FIREWALL_UNIT, *(f"{PREFIX}-{name}.service" for name in spec.after)]

    def command(*arguments: str) -> str:
        return " ".join(systemd_quote(argument) for argument in arguments)

    uid, gid = spec.user.split(":")
    # Named volumes stay: those without a name go with their container.
    remove_stale = f"timeout {REMOVE_TIMEOUT} docker rm --force --volumes {spec.container} >/dev/null 2>&1"
    # No container without the firewall; not `Requires=`, which would stop them with each restart of nftables.
    start = ["ExecStartPre=" + command("/usr/bin/systemctl", "is-active", "--quiet", FIREWALL_UNIT)]
    # What this cannot remove, `docker create` refuses by name.
    start += ["ExecStartPre=-" + command("/bin/sh", "-c", remove_stale)]
    start += [
        "ExecStartPre="
        + command(
            *("/usr/bin/install", f"--owner={uid}", f"--group={gid}", "--mode=0400"),
            f"/etc/mlops/secrets/{secret.name}",
            f"{spec.runtime_dir}/{secret.name}",
        )
        for secret in spec.secrets
    ]
    if spec.owned_volumes:
        start.append("ExecStartPre=" + command(OWN_VOLUMES, spec.user, *spec.owned_volumes))
    start.append("ExecStartPre=" + command(*create_command(spec, fingerprint)))
    lines = [
        "# Written by Ansible (systemd_container): changes made here are overwritten.",
        "[Unit]",
        f"Description={spec.description.replace('%', '%%')}",
        f"PartOf={TARGET}",
        "Requires=docker.service",
        " ".join(["After=docker.service", *dependencies]),
        f"Wants={' '.join(dependencies)}",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=20",
        "",
        "[Service]",
        "Type=exec",
        *([f"RuntimeDirectory=mlops/{spec.name}", "RuntimeDirectoryMode=0700"] if spec.secrets else []),
        *start,
        f"ExecStart={DOCKER} start --attach {spec.container}",
        f"ExecStartPost={AWAIT_HEALTHY} {spec.container} {spec.start_timeout}",
        *(["ExecReload=" + command(DOCKER, "exec", spec.container, "sh", "-c", spec.reload)] if spec.reload else []),
        f"ExecStop={DOCKER} stop --time={spec.stop_timeout} {spec.container}",
        "ExecStopPost=-" + command("/bin/sh", "-c", remove_stale),
        # 143 is the answer to SIGTERM: how a program without a handler of its own stops.
        "SuccessExitStatus=143",
        "Restart=always",
        # 1 s after the first failure, up to 30 s apart when it keeps failing.
        "RestartSec=1",
        "RestartSteps=6",
        "RestartMaxDelaySec=30",
        f"TimeoutStartSec={spec.start_timeout + OVERHEAD_TIMEOUT}",
        f"TimeoutStopSec={spec.stop_timeout + OVERHEAD_TIMEOUT}",
        f"SyslogIdentifier={spec.container}",
        "",
        "[Install]",
        f"WantedBy={TARGET}",
        "",
    ]
    return "\n".join(lines)


def fingerprint_of(spec: ContainerSpec, image_id: str, secrets: dict[str, str], key: bytes) -> str:
    """Digest of everything that the running container depends on.

    Args:
        spec: the service.
        image_id: the id of the image that ``spec.image`` stands for on the host.
        secrets: contents of the secrets by name.
        key: a key of the host's own, so that the digest, which `docker inspect` shows, tells nothing about a secret.

    Returns:
        The first 32 hexadecimal digits of an HMAC-SHA256.
    """
    document = {
        "unit": render_unit(spec, fingerprint=""),
        # What is read anew is no reason to make the container anew.
        "files": {} if spec.reload else {item.name: item.content for item in spec.files},
        "secrets": secrets,
        "image": image_id,
    }
    return hmac.new(key, json.dumps(document, sort_keys=True).encode(), hashlib.sha256).hexdigest()[:32]
