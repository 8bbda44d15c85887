"""One environment after the other: resolved, installed aside, and found when it is complete."""

from __future__ import annotations

import hashlib
import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from environments import metrics
from environments.requirements import Refused, Request
from environments.settings import Settings
from environments.store import Store
from environments.uv import Failure, UnreachableError, Uv, end, packages

_logger = logging.getLogger(__name__)

_KEPT_SECONDS = {"refused": 60.0, "unreachable": 10.0}
"""So long the same request has the same answer; then it is tried again."""
_MOST_WAITING = 32
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
"""Of the environments: the service runs on the same."""


@dataclass
class Job:
    """A request and how far it is."""

    request: Request
    key: str
    answer: dict[str, Any] = field(default_factory=lambda: {"state": "installing", "says": "it waits for others"})
    ended: float = 0.0
    """On the monotonic clock; 0 while it is under way."""


class BusyError(Exception):
    """Too many requests wait."""


class Maker(threading.Thread):
    """Makes one environment after the other.

    Args:
        settings: of the service.
        store: where they go.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        super().__init__(name="maker", daemon=True)
        self._settings = settings
        self._store = store
        self._waiting: queue.Queue[Job] = queue.Queue(_MOST_WAITING)
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._compiling: subprocess.Popen[bytes] | None = None
        self._compiled = ""

    def ask(self, request: Request) -> dict[str, Any]:
        """The answer to a request as of now; a new one is begun.

        Raises:
            BusyError: when too many wait.
        """
        key = request.key(PYTHON, self._settings.build_packages)
        with self._lock:
            self._forget()
            job = self._jobs.get(key)
            if job is not None:
                return job.answer
            remembered = self._store.remembered(key)
            if remembered is not None:
                return remembered
            job = Job(request, key)
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                raise BusyError from None
            self._jobs[key] = job
            return job.answer

    def _forget(self) -> None:
        now = time.monotonic()
        for key, job in list(self._jobs.items()):
            if job.ended and now - job.ended > _KEPT_SECONDS.get(job.answer["state"], 0.0):
                del self._jobs[key]

    def run(self) -> None:
        """Make what is asked for until the process ends."""
        while True:
            job = self._waiting.get()
            self._end_compiling()
            begun = time.monotonic()
            try:
                answer = self._make(job)
            except Refused as refused:
                answer = {"state": "refused", "kind": refused.kind, "reason": refused.reason}
            except UnreachableError as error:
                answer = {"state": "unreachable", "reason": f"an index does not answer: {error}; it is tried again"}
            except Exception as error:
                _logger.exception("an environment cannot be made")
                answer = {"state": "unreachable", "reason": f"the service failed: {error}; its log has more"}
            finally:
                self._store.discard()
            if answer["state"] == "refused":
                # What is refused once is looked at again the next time, and leaves nothing.
                self._store.prune_cache()
            seconds = time.monotonic() - begun
            metrics.INSTALLATIONS.labels(answer.get("kind", answer["state"])).inc()
            metrics.SECONDS.inc(seconds)
            shown = {name: value for name, value in answer.items() if name != "lock"}
            level = logging.INFO if answer["state"] == "ready" else logging.WARNING
            _logger.log(level, "asked for an environment", extra={**shown, "seconds": round(seconds, 1)})
            with self._lock:
                job.answer, job.ended = answer, time.monotonic()
                if answer["state"] == "ready":
                    # From now on the volume has the answer.
                    del self._jobs[job.key]
            if answer["state"] == "ready":
                self._compile(answer["environment"], job.request)

    def _end_compiling(self) -> None:
        if self._compiling is not None:
            end(self._compiling)
            self._store.share_bytecode(self._compiled)
            self._compiling = None

    def _compile(self, digest: str, request: Request) -> None:
        """Write the environment's bytecode until somebody else asks.

        Nothing is run for it. All at once it would take longer than the installation. What only the model has comes
        first: it is there when workers, which load it all at the same time, have imported what they need themselves.
        """
        own = [str(path) for path in self._store.packages(digest, request.own())]
        self._compiled = digest
        libraries = str(self._store.root / digest / "lib")
        command = [sys.executable, "-m", "compileall", "-q", "-x", "/tests?/"]
        self._compiling = subprocess.Popen(
            ["nice", "--adjustment=19", *command, *own, libraries],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _make(self, job: Job) -> dict[str, Any]:
        def says(text: str) -> None:
            job.answer = {"state": "installing", "says": text}

        uv = Uv(self._settings, self._store)
        says("versions are being resolved")
        lock, notes = self._resolve(uv, job.request)
        digest = hashlib.sha256("\n".join([PYTHON, *lock]).encode()).hexdigest()[:32]
        if not self._store.has(digest):
            says(f"{len(lock)} packages are being installed")
            self._install(uv, lock, digest)
        self._store.use(digest)
        answer = {"state": "ready", "environment": digest, "lock": lock, "notes": notes}
        self._store.remember(job.key, answer)
        return answer

    # --- resolving ---

    def _resolve(self, uv: Uv, request: Request) -> tuple[list[str], list[str]]:
        found = self._lock_of(uv, request)
        if not isinstance(found, Failure):
            return found, []
        without = request.without_mlflow()
        if without is not None:
            # MLflow reads what other versions of it have logged.
            other = self._lock_of(uv, without)
            if not isinstance(other, Failure):
                version = next((line for line in other if line.startswith("mlflow")), "mlflow")
                return other, [f"{request.mlflow()} cannot be had here, {version} takes its place"]
        raise self._refusal(uv, request, found)

    def _lock_of(self, uv: Uv, request: Request) -> list[str] | Failure:
        lines = "\n".join([*request.requirements, *request.needs]) + "\n"

        def compiled(*sources: str) -> str | Failure:
            arguments = ["pip", "compile", "--no-header", "--no-annotate", "--no-emit-index-url"]
            arguments += ["--no-emit-find-links", "--python", self._settings.python, *self._wheels_only(), *sources]
            return uv.run(*arguments, "-", given=lines)

        found = self._with_sources(compiled)
        return found if isinstance(found, Failure) else list(packages(found))

    def _with_sources(self, ask: Callable[..., str | Failure]) -> str | Failure:
        """Ask of the wheels that were brought alone, which needs no network, and else of the indexes too."""
        if not any(self._settings.wheels.glob("*.whl")):
            return ask()
        brought = f"--find-links={self._settings.wheels}"
        alone = ask("--no-index", brought)
        return ask(brought) if isinstance(alone, Failure) else alone

    def _wheels_only(self) -> list[str]:
        return [] if self._settings.build_packages else ["--only-binary=:all:"]

    def _refusal(self, uv: Uv, request: Request, failure: Failure) -> Refused:
        why = failure.text
        if "was not found in the" in why or "no version" in why or "no versions" in why:
            return Refused(
                "version",
                f"{why}; name a version that the index has, add its index to environments_extra_indexes, or bring its "
                "wheel (docs/environments.md)",
            )
        if "wheel" in why:
            return Refused(
                "wheel",
                f"{why}; it has none for Python {PYTHON} and this machine: log the model with a version that has one, "
                "bring its wheel (docs/environments.md), or set environments_build_packages",
            )
        own = Request(request.requirements, (), request.full_mlflow)
        if request.needs and not isinstance(self._lock_of(uv, own), Failure):
            return Refused(
                "conflict",
                f"its requirements do not go with what the program that runs it needs: {why}; log it with versions "
                f"that allow {', '.join(request.needs)}",
            )
        return Refused("conflict", f"its requirements do not go together: {why}; log it with versions that do")

    # --- installing ---

    def _install(self, uv: Uv, lock: list[str], digest: str) -> None:
        place = self._store.stage()
        own = place / "pyvenv.cfg"
        made = b""

        def installed(*sources: str) -> str | Failure:
            nonlocal made
            # Anew for each try, for uv runs its Python: nothing that was installed may run here.
            # Its programs find it wherever it lies: it is renamed when it is complete.
            arguments = ["venv", "--relocatable", "--no-project", "--python", self._settings.python, "--clear"]
            failure = uv.run(*arguments, str(place))
            if isinstance(failure, Failure):
                raise RuntimeError(failure.text)
            made = own.read_bytes()
            arguments = ["pip", "install", "--no-deps", "--python", str(place / "bin" / "python")]
            arguments += [*self._wheels_only(), "--requirement=-", *sources]
            return uv.run(*arguments, given="\n".join(lock) + "\n")

        failure = self._with_sources(installed)
        if isinstance(failure, Failure):
            raise Refused(
                "wheel",
                f"a package cannot be installed: {failure.text}; is its wheel whole? Name another version",
            )
        if own.is_symlink() or own.read_bytes() != made:
            raise Refused(
                "wheel",
                "a package writes over pyvenv.cfg, which leads the environment's Python elsewhere; do not trust it, "
                "and see where it comes from",
            )
        self._store.keep_below(self._settings.quota)
        self._store.commit(place, digest)
