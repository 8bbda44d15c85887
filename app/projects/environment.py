"""The packages of a project: the image's own where they satisfy it, else an environment that a service makes."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests
import yaml
from packaging.requirements import InvalidRequirement, Requirement

from projects.mlproject import ProjectError, read

_logger = logging.getLogger("projects")

#: Seconds between two questions whether an environment is there, and for one of them.
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 60.0
_OPTION = re.compile(r"(?:-r|--requirement)(?:\s+|=)?(?P<file>\S+)")


def requirements_of(project: Path) -> list[str]:
    """Return what a project requires, as its ``python_env.yaml``, ``requirements.txt`` or ``conda.yaml`` says.

    Args:
        project: directory of the project.

    Raises:
        ProjectError: one of these files cannot be read.
    """
    said = read(project) or {}
    named = [(kind, str(said[kind])) for kind in ("python_env", "conda_env") if kind in said]
    usual = [("python_env", "python_env.yaml"), ("pip", "requirements.txt"), ("conda_env", "conda.yaml")]
    for kind, name in named or usual:
        path = project / name
        if path.is_file():
            try:
                return list(_requirements(project, path, kind))
            except (OSError, UnicodeError, AttributeError, TypeError, yaml.YAMLError) as error:
                raise ProjectError(f"{name} of the project cannot be read: {error}") from error
    return []


def _requirements(project: Path, path: Path, kind: str) -> Iterator[str]:
    if kind == "pip":
        yield from _lines(path.read_text(encoding="utf-8"), path.parent)
        return
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    python = content.get("python")
    if python and kind == "python_env":
        _logger.info("%s names Python %s: it is trained with %s", path.name, python, platform.python_version())
    for entry in content.get("dependencies") or []:
        # Of conda's own packages there are none here: pip's are a dictionary among them.
        lines = entry.get("pip") or [] if isinstance(entry, dict) else [entry] if kind == "python_env" else []
        yield from _lines("\n".join(lines), project)


def _lines(text: str, directory: Path) -> Iterator[str]:
    for line in re.sub(r"\\\n", " ", text).splitlines():
        # Hashes are those of a lock that another resolver made for other files.
        kept = re.sub(r"(^|\s)(#.*|--hash=\S+)", "", line).strip()
        if option := _OPTION.fullmatch(kept):
            included = directory / option["file"]
            yield from _lines(included.read_text(encoding="utf-8"), included.parent)
        elif kept:
            yield kept


def is_satisfied(requirements: Sequence[str]) -> bool:
    """Tell whether the packages beside this program are what a project requires."""
    return all(_is_there(requirement) for requirement in requirements)


def _is_there(line: str) -> bool:
    try:
        requirement = Requirement(line)
    except InvalidRequirement:
        return False
    if requirement.marker and not requirement.marker.evaluate():
        return True
    if requirement.url or requirement.extras:
        return False
    try:
        return requirement.specifier.contains(importlib.metadata.version(requirement.name), prereleases=True)
    except importlib.metadata.PackageNotFoundError:
        return False


def make(requirements: Sequence[str], service: str, directory: Path) -> Path:
    """Have an environment made, wait for it, and return the directory of its programs.

    Args:
        requirements: of the project.
        service: address of the service that makes environments.
        directory: where its environments are mounted.

    Raises:
        ProjectError: it is refused, or the service or its index does not answer; with its reason.
    """
    # Who trains logs to MLflow: where the project does not say which, it is the image's.
    has_mlflow = any(re.match(r"mlflow\s*([=<>!~;\[]|$)", line, re.IGNORECASE) for line in requirements)
    with_mlflow = [] if has_mlflow else [f"mlflow=={importlib.metadata.version('mlflow')}"]
    body = {"requirements": list(requirements), "with": with_mlflow, "mlflow": "full"}
    said = ""
    while True:
        try:
            response = requests.post(f"{service}/environments", json=body, timeout=_ANSWER_SECONDS)
            answer = response.json()
        except (requests.RequestException, ValueError) as error:
            raise ProjectError(
                f"the training image lacks some of {', '.join(requirements)}, and the service that makes environments, "
                f"{service}, does not answer: {error}"
            ) from None
        if response.status_code != requests.codes.accepted:
            break
        if answer.get("says", "") != said:
            said = answer["says"]
            _logger.info("environment: %s", said)
        time.sleep(_LOOK_SECONDS)
    if response.status_code != requests.codes.ok:
        raise ProjectError(f"the environment of the project is {answer.get('state')}: {answer.get('reason')}")
    digest = str(answer["environment"])
    requests.post(f"{service}/environments/{digest}/use", timeout=_ANSWER_SECONDS)
    programs = directory / digest / "bin"
    if not (programs / "python").exists():
        raise ProjectError(f"the environment {digest} is said to be ready, and {programs}/python is not there")
    _logger.info("environment: %s", digest)
    return programs
