"""What an ``MLproject`` says, and whether it can be run as asked: without MLflow, for the controller reads it too."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_ENVIRONMENTS = ("python_env", "conda_env")
_SCRIPTS = (".py", ".sh")


class ProjectError(Exception):
    """Something the operator can put right; the message says what."""


def read(project: Path) -> dict[str, Any] | None:
    """Return what a project's ``MLproject`` says, None where there is none.

    Args:
        project: directory of the project.

    Raises:
        ProjectError: it is no directory, or its ``MLproject`` cannot be read.
    """
    if not project.is_dir():
        raise ProjectError(f"{project} is no directory")
    path = next((path for path in sorted(project.iterdir()) if path.name.lower() == "mlproject"), None)
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ProjectError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("entry_points", {}), dict):
        raise ProjectError(f"{path.name} is no dictionary with entry_points: see MLflow's documentation of projects")
    return content


def script_of(project: Path, entry_point: str) -> str:
    """Return what MLflow is to run: the entry point itself, or ``train.py`` where nothing says what ``main`` is."""
    return "train.py" if entry_point == "main" and read(project) is None else entry_point


def text_of(value: object) -> str:
    """Return a parameter's value as it stands in a command: YAML's true and false as a person writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def complaints(project: Path, entry_point: str, parameters: Mapping[str, Any]) -> list[str]:
    """Return why a project cannot be run as asked, each beginning with the setting that is wrong.

    Args:
        project: directory of the project.
        entry_point: the setting ``training_entry_point``.
        parameters: the setting ``training_parameters``.
    """
    try:
        content = read(project)
    except ProjectError as error:
        return [f"training_project: {error}."]
    found = [f"training_project: {reason}." for reason in _unfit(project, content or {})]
    found += _unfit_values(parameters)
    declared = (content or {}).get("entry_points", {})
    if entry_point in declared:
        return found + _unfit_parameters(entry_point, declared[entry_point] or {}, parameters)
    if content is None and entry_point == "main":
        if not (project / "train.py").is_file():
            found.append(f"training_project: {project} has neither an MLproject nor a train.py: add one of them.")
    elif not (entry_point.endswith(_SCRIPTS) and (project / entry_point).is_file()):
        ways = ", ".join(declared) or "none but scripts of its own, such as train.py"
        found.append(
            f"training_entry_point: the project has no {entry_point!r}{_nearest(entry_point, declared)}: it has {ways}."
        )
    return found


def _unfit(project: Path, content: Mapping[str, Any]) -> list[str]:
    reasons = [
        f"its MLproject wants {name}, which the training container has not: name a python_env"
        for name in ("docker_env", "databricks_spark_job")
        if name in content
    ]
    reasons += [
        f"its MLproject names {content[name]!r} as its {name}, and there is no such file"
        for name in _ENVIRONMENTS
        if name in content and not (project / str(content[name])).is_file()
    ]
    return reasons


def _unfit_values(parameters: Mapping[str, Any]) -> list[str]:
    found = [
        f"training_parameters: {name!r} is no name of a parameter: letters, digits, _ and -, a letter or _ first."
        for name in parameters
        if not _NAME.fullmatch(str(name))
    ]
    return found + [
        f"training_parameters: {name} is {value!r}: give text, a number, true or false."
        for name, value in parameters.items()
        if not isinstance(value, str | int | float | bool)
    ]


def _unfit_parameters(entry_point: str, content: Any, parameters: Mapping[str, Any]) -> list[str]:
    declared = content.get("parameters") or {} if isinstance(content, dict) else {}
    if not isinstance(declared, dict) or not content.get("command"):
        return [f"training_project: its entry point {entry_point} has no command: see its MLproject."]
    found = [
        f"training_parameters: the entry point {entry_point} has no parameter {name!r}{_nearest(name, declared)}: "
        f"it has {', '.join(declared) or 'none'}."
        for name in parameters
        if name not in declared
    ]
    for name, what in declared.items():
        kind, default = (what, None) if isinstance(what, str) else (what.get("type", "string"), what.get("default"))
        if name not in parameters:
            if default is None:
                found.append(f"training_parameters: {name} is missing: the entry point {entry_point} has no default.")
        elif kind == "float" and not _is_number(parameters[name]):
            found.append(f"training_parameters: {name} is {parameters[name]!r}: the project wants a number.")
        elif kind == "uri" and not re.match(r"[a-z0-9+.-]+:/", str(parameters[name])):
            found.append(f"training_parameters: {name} is {parameters[name]!r}: the project wants a URI.")
    return found


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(str(value)))
    except ValueError:
        return False


def _nearest(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, [str(one) for one in known], n=1)
    return f", did you mean {matches[0]!r}" if matches else ""
