"""Settles from which packages a version is served: the image's own, or an environment that a service makes for it."""

from __future__ import annotations

import contextlib
import json
import logging
import pickletools
import platform
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from model_server.common import metrics
from model_server.common.environment import Environment
from model_server.common.settings import Settings
from model_server.common.signature import Check, SignatureError
from model_server.common.store import StoredModel

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_ASK_TIMEOUT_SECONDS = 15.0
_USE_SECONDS = 120.0
"""Between two notes to the service that an environment is in use; it keeps for some minutes what was."""
_PYTHON = re.compile(r"^python:\s*['\"]?([0-9.]+)", flags=re.MULTILINE)
_NEEDS = Path(__file__).parents[1] / "worker" / "requirements.txt"


@dataclass(frozen=True)
class Settled:
    """It is known from which packages a version is served."""

    model: StoredModel


@dataclass(frozen=True)
class Unsettled:
    """A version cannot be served from any packages."""

    model: StoredModel
    reason: str
    kind: str
    """For the metric: ``environment``, or ``signature``."""
    again: bool = False
    """Whether it may be otherwise in a moment."""


class UnfitError(Exception):
    """A version cannot be served here; the message has the reason and the way out."""


class UnreachableError(Exception):
    """Nobody makes an environment now."""


@dataclass(frozen=True)
class _Gap:
    """How the image's packages differ from what a version asks for."""

    missing: tuple[str, ...]
    different: tuple[str, ...]

    @property
    def is_closed(self) -> bool:
        return not self.missing and not self.different


class Environments:
    """The environments of versions.

    Args:
        settings: of the server.
        notify: called from threads of its own with :class:`Settled` and :class:`Unsettled`.
        say: called with the progress in words; an empty text when there is none.
    """

    def __init__(
        self, settings: Settings, notify: Callable[[Settled | Unsettled], None], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._notify = notify
        self._say = say
        self._settling: set[Path] = set()
        self._known: dict[Path, Environment] = {}
        self._used: set[str] = set()

    # --- what is known at once ---

    def known(self, model: StoredModel, *, nothing_serves: bool) -> Environment | None:
        """From what a version is served, without asking anybody; None where somebody has to be asked.

        Args:
            model: the version.
            nothing_serves: whether it is better to serve it from packages of other versions than to wait.

        Raises:
            UnfitError: when it cannot be served on this Python.
        """
        found = self._known.get(model.directory) or self._recorded(model)
        if found is not None and self._is_there(found):
            return found
        logged_with = _logged_with(model)
        if logged_with and _has_code_by_value(model):
            raise UnfitError(
                f"it was pickled with Python {logged_with}, with code that Python {platform.python_version()} does not "
                f'run; log it from code (python_model="file.py"), or with Python {_minor(platform.python_version())}'
            )
        gap = _gap(_requirements(model))
        if gap.is_closed or (nothing_serves and not gap.missing):
            return Environment(differences=gap.different, logged_with=logged_with)
        return None

    def python(self, environment: Environment) -> str | None:
        """The interpreter of an environment that was made; None for the image's own."""
        return str(self._settings.environments / environment.digest / "bin" / "python") if environment.digest else None

    def _is_there(self, environment: Environment) -> bool:
        python = self.python(environment)
        return python is None or Path(python).exists()

    def _recorded(self, model: StoredModel) -> Environment | None:
        try:
            return Environment.from_json(model.environment_path.read_text())
        except (OSError, ValueError, TypeError, KeyError):
            return None

    # --- what has to be asked for ---

    def settle(self, model: StoredModel) -> None:
        """Have an environment made for a version, aside; :class:`Settled` or :class:`Unsettled` comes when it is."""
        if model.directory in self._settling:
            return
        self._settling.add(model.directory)
        threading.Thread(target=self._settle, args=(model,), daemon=True).start()

    def _settle(self, model: StoredModel) -> None:
        version = model.version.version
        begun = time.monotonic()
        result: Settled | Unsettled
        try:
            # Nothing is installed, and no interpreter started, for files that are not what was signed.
            Check(model, self._settings.signing_key).result(required=self._settings.require_signature)
            environment = self._made(model)
        except SignatureError as error:
            result = Unsettled(model, str(error), "signature")
        except UnreachableError as error:
            result = Unsettled(model, str(error), "environment", again=True)
        except UnfitError as error:
            result = Unsettled(model, str(error), "environment")
        except Exception as error:
            _logger.exception("an environment cannot be settled")
            result = Unsettled(model, f"its environment cannot be settled: {error!r}", "environment", again=True)
        else:
            self._known[model.directory] = environment
            seconds = round(time.monotonic() - begun, 1)
            details = {"version": version, "environment": environment.digest, "differences": environment.differences}
            _logger.info("the environment is settled", extra={**details, "seconds": seconds})
            result = Settled(model)
        metrics.ENVIRONMENTS.labels("settled" if isinstance(result, Settled) else "refused").inc()
        self._say("")
        self._settling.discard(model.directory)
        self._notify(result)

    def _made(self, model: StoredModel) -> Environment:
        logged_with = _logged_with(model)
        lines = _requirements(model)
        gap = _gap(lines)
        try:
            answer = self._asked(model, lines)
        except UnreachableError as error:
            if gap.missing:
                raise UnreachableError(f"this image does not have {', '.join(gap.missing)}, and {error}") from error
            # As it was before there were environments. Not recorded: it has one when there is somebody to make it.
            return Environment(differences=(*gap.different, str(error)), logged_with=logged_with)
        environment = Environment(answer["environment"], tuple(answer.get("notes", ())), logged_with)
        if not self._is_there(environment):
            raise UnreachableError(f"its environment is not in {self._settings.environments}; is the volume mounted?")
        with contextlib.suppress(OSError):
            # Without it the next start asks again.
            model.environment_path.write_text(environment.to_json() + "\n")
        return environment

    def _asked(self, model: StoredModel, lines: list[str]) -> dict[str, Any]:
        version = model.version.version
        body = {"requirements": lines, "with": needs()}
        said = ""
        while True:
            answer = self._post("/environments", body)
            match answer.get("state"):
                case "ready":
                    return answer
                case "installing":
                    if answer["says"] != said:
                        said = answer["says"]
                        self._say(f"version {version} gets its environment: {said}")
                        _logger.info("a version gets its environment", extra={"version": version, "says": said})
                    time.sleep(_POLL_SECONDS)
                case "refused":
                    raise UnfitError(f"its environment cannot be made: {answer['reason']}")
                case _:
                    raise UnreachableError(f"no environment can be made: {answer.get('reason', 'no reason given')}")

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        if not self._settings.environments_url:
            raise UnreachableError("there is no service that makes environments (ENVIRONMENTS_URL)")
        request = urllib.request.Request(  # noqa: S310 - the setting is checked
            self._settings.environments_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            try:
                with urllib.request.urlopen(request, timeout=_ASK_TIMEOUT_SECONDS) as response:  # noqa: S310
                    answer: dict[str, Any] = json.load(response)
            except urllib.error.HTTPError as error:
                with error:
                    answer = json.load(error)
        except (OSError, ValueError) as error:
            raise UnreachableError(f"the service that makes environments does not answer: {error}") from error
        return answer

    # --- what is in use ---

    def use(self, digests: set[str]) -> None:
        """Keep the service from removing these environments, from now on."""
        self._used = digests
        threading.Thread(target=self._note_use, daemon=True).start()

    def keep_used(self) -> None:
        """Say again and again what is in use, in a thread of its own."""

        def run() -> None:
            while True:
                time.sleep(_USE_SECONDS)
                self._note_use()

        threading.Thread(target=run, daemon=True).start()

    def _note_use(self) -> None:
        for digest in self._used:
            # It notes what it makes itself, and asks again soon enough.
            with contextlib.suppress(UnreachableError):
                self._post(f"/environments/{digest}/use", {})


def needs() -> list[str]:
    """What the worker needs of an environment, as requirement lines."""
    lines = map(str.strip, _NEEDS.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _requirements(model: StoredModel) -> list[str]:
    try:
        return requirement_lines((model.model_path / "requirements.txt").read_text())
    except (OSError, UnicodeDecodeError):
        return []


def requirement_lines(text: str) -> list[str]:
    """The requirements in a file of them, without comments."""
    return [
        line for given in text.splitlines() if (line := given.partition(" #")[0].strip()) and not line.startswith("#")
    ]


def _gap(lines: list[str]) -> _Gap:
    missing, different = [], []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            # Who makes environments says what is wrong with it.
            missing.append(line)
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        # The image has MLflow without its server.
        name = "mlflow-skinny" if requirement.name.lower() == "mlflow" else requirement.name
        try:
            present = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(line)
            continue
        if requirement.url or requirement.extras:
            missing.append(line)
        elif not requirement.specifier.contains(present, prereleases=True):
            different.append(f"{line}: here {present}")
    return _Gap(tuple(missing), tuple(different))


def _logged_with(model: StoredModel) -> str:
    """The version of Python that a version was logged with, where its minor version is another than ours."""
    try:
        found = _PYTHON.search((model.model_path / "python_env.yaml").read_text())
    except (OSError, UnicodeDecodeError):
        return ""
    return found[1] if found and _minor(found[1]) != _minor(platform.python_version()) else ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _has_code_by_value(model: StoredModel) -> bool:
    """Whether the model's pickle has code objects, which are one Python's own. It is read and not loaded."""
    try:
        with (model.model_path / "python_model.pkl").open("rb") as file:
            return any(argument == "CodeType" for _, argument, _ in pickletools.genops(file))
    except OSError:
        return False
    except Exception:  # noqa: BLE001 - whatever is wrong with it, its start says so
        return False
