"""What a caller asks for: requirement lines, checked before uv sees one of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import NormalizedName, canonicalize_name

_MOST_LINES = 500
_LONGEST_LINE = 500


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """An environment that is not made.

    Args:
        kind: ``requirement``, ``version``, ``wheel``, ``conflict``, ``quota``, ``time`` or ``disk``.
        reason: which requirement, why, and what to do: clauses without a full stop.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


@dataclass(frozen=True)
class Request:
    """One body of ``POST /environments``."""

    requirements: tuple[str, ...]
    """The model's or the project's own."""
    needs: tuple[str, ...]
    """Of the program that is to run in the environment; the body's ``with``."""
    full_mlflow: bool
    """Whether ``mlflow`` is to be MLflow's whole distribution and not ``mlflow-skinny``."""

    @classmethod
    def parse(cls, body: Any) -> Request:
        """Check a decoded body.

        Raises:
            Refused: when a line is none that is installed from an index.
        """
        if not isinstance(body, dict) or not body.keys() <= {"requirements", "with", "mlflow"}:
            raise Refused("requirement", "the body is not an object of requirements, with and mlflow")
        if body.get("mlflow", "skinny") not in ("skinny", "full"):
            raise Refused("requirement", f"mlflow is {body['mlflow']!r}; give skinny or full")
        full = body.get("mlflow") == "full"
        return cls(_lines(body.get("requirements", []), full=full), _lines(body.get("with", []), full=full), full)

    def key(self, *context: object) -> str:
        """A name for this request among others.

        Args:
            context: what else decides its answer.
        """
        text = json.dumps([self.requirements, self.needs, self.full_mlflow, *context])
        return sha256(text.encode()).hexdigest()[:32]

    def without_mlflow(self) -> Request | None:
        """The same with MLflow at whatever version the needs allow, or None where it names none."""
        kept = tuple(line for line in self.requirements if not _is_mlflow(line))
        has_need = any(map(_is_mlflow, self.needs))
        return Request(kept, self.needs, self.full_mlflow) if has_need and kept != self.requirements else None

    def own(self) -> set[NormalizedName]:
        """Names of the packages that are required and no need: those of the model or the project."""
        both = self.requirements, self.needs
        required, needed = ({canonicalize_name(Requirement(line).name) for line in lines} for lines in both)
        return required - needed

    def mlflow(self) -> str:
        """The line by which the requirements name MLflow."""
        return next(filter(_is_mlflow, self.requirements), "mlflow")


def _is_mlflow(line: str) -> bool:
    return Requirement(line).name.lower() in ("mlflow", "mlflow-skinny")


def _lines(lines: Any, *, full: bool) -> tuple[str, ...]:
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines) or len(lines) > _MOST_LINES:
        raise Refused("requirement", f"requirements are a list of at most {_MOST_LINES} texts")
    return tuple(
        _checked(text, full=full) for line in lines if (text := line.partition(" #")[0].strip()) and text[0] != "#"
    )


def _checked(line: str, *, full: bool) -> str:
    shown = line[:100]
    if len(line) > _LONGEST_LINE or not line.isprintable():
        raise Refused("requirement", f"{shown!r} is longer than {_LONGEST_LINE} characters or has unprintable ones")
    if line.startswith("-"):
        option = line.split("=")[0].split()[0]
        raise Refused(
            "requirement",
            f"{shown!r} has the option {option}, which is not taken from a model; name packages only, and set "
            "indexes with environments_index and environments_extra_indexes",
        )
    try:
        requirement = Requirement(line)
    except InvalidRequirement as error:
        why = str(error).splitlines()[0]
        looks_local = line.startswith((".", "/", "~", "file:", "git+", "http:", "https:")) or line.endswith(".whl")
        way_out = (
            "bring its wheel (docs/environments.md) and name it by name and version"
            if looks_local
            else ("write it as name==version")
        )
        why = "it is a path or an address" if looks_local else why
        raise Refused("requirement", f"{shown!r} is no requirement of a package index: {why}; {way_out}") from None
    if requirement.url:
        raise Refused(
            "requirement",
            f"{shown!r} names an address; bring its wheel (docs/environments.md) and name it by name and version",
        )
    if requirement.name.lower() == "mlflow" and not full:
        marker = f" ; {requirement.marker}" if requirement.marker else ""
        return f"mlflow-skinny{requirement.specifier}{marker}"
    return str(requirement)
