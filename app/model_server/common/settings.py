"""Configuration from the environment: read once, checked, refused with the name of the variable that is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from model_server.common.model_uri import ModelUri

T = TypeVar("T")

_MIB = 1024 * 1024
_TRACKING_SCHEMES = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc")


class SettingsError(ValueError):
    """A variable has a value that cannot be used; the message names it, its value and the way out."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with the environment variable of each in :meth:`from_environment`."""

    tracking_uri: str
    """Of MLflow's server (``http``, ``https``) or of a store that MLflow's client reads itself."""
    model: ModelUri
    """What is served: what it resolves to is followed."""
    model_directory: Path
    """Where model versions are kept; must be writable and survive restarts."""
    environments_url: str
    """Of the service that makes environments for models; empty where there is none."""
    environments: Path
    """Where that service keeps them."""
    host: str
    port: int
    socket: Path | None
    """A Unix socket to listen on too, for a proxy on the same machine."""
    workers: int
    """Worker processes for small requests; there are others for large ones."""
    preload_model: bool
    """Load the model once, before the workers are forked, so that they share its memory."""
    concurrency: int
    """Predictions that one worker runs at once; 1 also keeps models that are not thread-safe correct."""
    queue_length: int
    """Requests that may wait in one worker; the next is answered 503 with Retry-After."""
    max_body_bytes: int
    max_rows: int
    """Rows that one request may ask for."""
    request_timeout: float
    """Seconds from the arrival of a request until it is answered 504."""
    shutdown_timeout: float
    """Seconds that requests in flight get at a stop or a change of model."""
    refresh_interval: float
    """Seconds between two looks at the registry's alias."""
    start_timeout: float
    """Seconds that a new model has to load and to answer its own example."""
    require_signature: bool
    """Serve signed versions only; a wrong signature is refused in any case."""
    signing_key: Path | None
    """Public key, a PEM file, of the one who signs."""
    debug: bool
    """Put exception messages and stack traces into error answers."""

    @property
    def large_workers(self) -> int:
        """Worker processes for large requests: one for two others, so that these keep a core."""
        return (self.workers + 1) // 2

    @property
    def processes(self) -> int:
        """All worker processes."""
        return self.workers + self.large_workers

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read and check every variable; an empty one counts as unset.

        Raises:
            SettingsError: for the first variable that cannot be used.
        """
        source = _Source(os.environ if environment is None else environment)
        name = source.get("MODEL_NAME", "code-search", _registry_name)
        alias = source.get("MODEL_ALIAS", "champion", _registry_name)
        require_signature = source.get("SERVING_REQUIRE_SIGNATURE", "false", _boolean)
        signing_key = source.get("SERVING_SIGNING_KEY", "", _public_key)
        if require_signature and signing_key is None:
            raise SettingsError("SERVING_REQUIRE_SIGNATURE=true takes a public key: SERVING_SIGNING_KEY names its file")
        return cls(
            tracking_uri=source.get("MLFLOW_TRACKING_URI", "http://mlflow:5000", _tracking_uri),
            model=source.get("MODEL_URI", f"models:/{name}@{alias}", ModelUri.parse),
            model_directory=source.get("MODEL_DIRECTORY", "/var/lib/models", _writable_directory),
            environments_url=source.get("ENVIRONMENTS_URL", "", _http_url),
            environments=source.get("ENVIRONMENTS_DIRECTORY", "/var/lib/environments", Path),
            # In a container every interface is the container network's.
            host=source.get("SERVING_HOST", "0.0.0.0", str),  # noqa: S104
            port=source.get("SERVING_PORT", "8000", _integer(1, 65535)),
            socket=source.get("SERVING_SOCKET", "", _socket_path),
            workers=source.get("SERVING_WORKERS", "0", _integer(0, 64)) or available_cores(),
            preload_model=source.get("SERVING_PRELOAD_MODEL", "false", _boolean),
            concurrency=source.get("SERVING_CONCURRENCY", "1", _integer(1, 64)),
            queue_length=source.get("SERVING_QUEUE_LENGTH", "64", _integer(0, 1000)),
            max_body_bytes=source.get("SERVING_MAX_BODY_BYTES", str(16 * _MIB), _integer(1, 1024 * _MIB)),
            max_rows=source.get("SERVING_MAX_ROWS", "10000", _integer(1, 10_000_000)),
            request_timeout=source.get("SERVING_REQUEST_TIMEOUT_SECONDS", "30", _seconds(0.05, 3600)),
            shutdown_timeout=source.get("SERVING_SHUTDOWN_TIMEOUT_SECONDS", "30", _seconds(1, 3600)),
            refresh_interval=source.get("SERVING_MODEL_REFRESH_SECONDS", "10", _seconds(0.1, 86400)),
            start_timeout=source.get("SERVING_MODEL_START_TIMEOUT_SECONDS", "300", _seconds(1, 3600)),
            require_signature=require_signature,
            signing_key=signing_key,
            debug=source.get("SERVING_DEBUG", "false", _boolean),
        )


def available_cores() -> int:
    """The whole cores this process may use: its affinity, cut down to the CPU quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(Path("/sys/fs/cgroup"))
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(root: Path) -> float | None:
    """The CPU quota in cores from cgroup v2 or v1 below ``root``, or None where there is none."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


class _Source:
    """One environment, read variable by variable."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def get(self, name: str, default: str, parse: Callable[[str], T]) -> T:
        text = self._environment.get(name, "").strip() or default
        try:
            return parse(text)
        except ValueError as error:
            raise SettingsError(f"{name}={text!r} cannot be used: {error} (default: {default})") from None


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"give a whole number from {lowest} to {highest}") from None
        if not lowest <= value <= highest:
            raise ValueError(f"give a whole number from {lowest} to {highest}")
        return value

    return parse


def _seconds(lowest: float, highest: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"give a number of seconds from {lowest:g} to {highest:g}") from None
        if not lowest <= value <= highest:
            raise ValueError(f"give a number of seconds from {lowest:g} to {highest:g}")
        return value

    return parse


def _boolean(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    try:
        return known[text.lower()]
    except KeyError:
        raise ValueError("give true or false") from None


def _tracking_uri(text: str) -> str:
    parts = urlsplit(text)
    # A database's may name its driver: postgresql+psycopg2.
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _TRACKING_SCHEMES or (scheme in ("http", "https") and not parts.hostname):
        raise ValueError(
            f"give the URI of an MLflow server or store, such as http://mlflow:5000; its scheme is one of "
            f"{', '.join(_TRACKING_SCHEMES)}"
        )
    return text.rstrip("/")


def _http_url(text: str) -> str:
    parts = urlsplit(text)
    if text and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise ValueError("give a URL such as http://environments:8000")
    return text.rstrip("/")


def _registry_name(text: str) -> str:
    # MLflow refuses the same characters; here they would also leave the model directory.
    if any(character in text for character in "/:@") or text in (".", ".."):
        raise ValueError("give the name as the registry has it, without '/', ':' or '@'")
    return text


def _socket_path(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("give an absolute path")
    # The kernel's limit, with the byte that ends it.
    if len(os.fsencode(path)) > 107:
        raise ValueError("give a path of at most 107 bytes")
    return path


def _public_key(text: str) -> Path | None:
    if not text:
        return None
    path = Path(text)
    try:
        content = path.read_text()
    except (OSError, ValueError) as error:
        raise ValueError(f"it cannot be read ({error}); name a file with a public key") from None
    if "BEGIN PUBLIC KEY" not in content:
        raise ValueError("it has no public key; name a PEM file with one")
    return path


def _writable_directory(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise ValueError("give an absolute path")
    if not path.is_dir():
        raise ValueError("there is no such directory; mount a volume there")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"user {os.getuid()} may not write there; give the directory to that user")
    return path
