"""uv as a process: bounded in time and room, and its message where it fails."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

from environments.requirements import Refused
from environments.settings import Settings
from environments.store import Store

_LOOK_SECONDS = 1.0
_FREE_BYTES = 256 * 1024**2
"""What an installation leaves on the disk for the others."""
_LONGEST = 700
_HINT = re.compile(r"\n\s*hint:", flags=re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/@\s]+@")
_UNREACHABLE = ("error sending request", "Failed to fetch", "Request failed", "timed out", "HTTP status")
_LED_OUT = re.compile(r"Skipping unsafe file name: (.*)")
"""uv does not write what leads out of an archive, and installs the rest: only its log says so."""
_CONCLUSION = re.compile(r",? we can conclude that your requirements are unsatisfiable\.?")


class UnreachableError(Exception):
    """An index does not answer; the message has what uv says of it."""


@dataclass(frozen=True)
class Failure:
    """uv ended with an error."""

    status: int
    text: str
    """What it says, on one line, without passwords of addresses."""


class Uv:
    """Runs uv for one environment.

    Args:
        settings: of the service.
        store: whose room it takes.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._deadline = time.monotonic() + settings.timeout
        self._environment = {
            # Nothing else of ours: no configuration of this user, and no other Python than the image's.
            **{name: os.environ[name] for name in ("PATH", "SSL_CERT_FILE") if name in os.environ},
            "HOME": tempfile.gettempdir(),
            "UV_CACHE_DIR": str(store.cache),
            "UV_NO_CONFIG": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_LINK_MODE": "hardlink",
            "UV_SYSTEM_CERTS": "1",
            "UV_CONCURRENT_BUILDS": "1",
            "UV_HTTP_RETRIES": "1",
            "RUST_LOG": "uv_extract=warn",
            **settings.network_variables(),
        }

    def run(self, *arguments: str, given: str = "") -> str | Failure:
        """Run uv and return what it prints.

        Args:
            arguments: of uv.
            given: on its standard input.

        Raises:
            Refused: when it takes more time, room or memory than it may.
            UnreachableError: when an index does not answer.
        """
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as source:
            source.write(given.encode())
            source.seek(0)
            process = subprocess.Popen(
                ["nice", "--adjustment=10", "uv", "--quiet", "--color=never", *arguments],
                env=self._environment,
                stdin=source,
                stdout=output,
                stderr=errors,
                # What it starts ends with it.
                start_new_session=True,
            )
            try:
                self._watch(process)
            finally:
                end(process)
            output.seek(0)
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            if led_out := _LED_OUT.search(said):
                raise Refused(
                    "wheel",
                    f"a package has a file that leads out of the environment: {led_out[1][:100]!r}; do not trust it, "
                    "and see where it comes from",
                )
            if process.returncode == 0:
                return output.read().decode()
            return self._failure(process.returncode, said)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                self._look()
            else:
                return

    def _look(self) -> None:
        if time.monotonic() > self._deadline:
            raise Refused(
                "time",
                f"it takes more than {self._settings.timeout:g} s; see whether its index is slow, or set "
                "environments_timeout to more",
            )
        self._store.keep_below(self._settings.quota)
        if shutil.disk_usage(self._store.root).free < _FREE_BYTES:
            raise _disk_full()

    def _failure(self, status: int, text: str) -> Failure:
        if "No space left on device" in text:
            raise _disk_full()
        if status == -signal.SIGKILL:
            raise Refused("quota", "it needs more memory than there is; set environments_memory to more")
        said = summary(text)
        if any(word in text for word in _UNREACHABLE):
            raise UnreachableError(said)
        return Failure(status, said)


def _disk_full() -> Refused:
    return Refused("disk", "the disk of the host is full; make room there, then ask again")


def summary(text: str) -> str:
    """What uv says, short and on one line, without passwords of addresses."""
    text = _CREDENTIALS.sub("//", _HINT.split(text)[0])
    text = text.partition("cause: ")[2] if "No solution found" in text else text
    text = " ".join(_CONCLUSION.sub("", text).replace("cause: ", "").split())
    return text.removeprefix("error: ")[:_LONGEST].rstrip(".")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def packages(lock: str) -> Sequence[str]:
    """The lines of a lock that name a package."""
    return [line for line in map(str.strip, lock.splitlines()) if line and line[0] not in "#-"]
