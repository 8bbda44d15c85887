"""What a search is told by its environment."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from projects.mlproject import ProjectError, text_of
from projects.run import Settings, dictionary

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Range:
    """What a parameter may be: a number from low to high, or one of some choices.

    Attributes:
        low: smallest value, itself included; whole when both ends are.
        high: largest value, itself included.
        log: whether orders of magnitude are equally likely, and not values.
        choices: the values, when it is not a number between two.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[str | float | bool, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        return f"{self.low} … {self.high}{' (log)' if self.log else ''}"


@dataclass(frozen=True, slots=True)
class Search:
    """A search.

    Attributes:
        parameters: what is varied.
        metric: metric of a trial's run, its last value, by which trials are compared.
        direction: ``minimize`` or ``maximize``.
        trials: how many, failed and pruned ones included.
        parallel: how many at once, None for as many as there are cores.
        prune: whether trials that do worse than half of the others did at the same step are ended early.
    """

    parameters: Mapping[str, Range]
    metric: str
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: int = 20
    parallel: int | None = None
    prune: bool = False

    @classmethod
    def parse(cls, text: str) -> Search:
        """Read the setting.

        Args:
            text: JSON, the value of TRAINING_SEARCH.

        Raises:
            ProjectError: it makes no sense.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise ProjectError(f"training_search is no JSON: {error}") from None
        if not isinstance(content, dict):
            raise ProjectError(f"training_search must be a dictionary, not {content!r}")
        _keys("training_search", content, {"parameters", "metric", "direction", "trials", "parallel", "prune"})
        parameters = content.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            raise ProjectError(f"training_search.parameters must name what is varied, not {parameters!r}")
        metric = content.get("metric")
        if not isinstance(metric, str) or not metric:
            raise ProjectError(f"training_search.metric must name a metric that the project logs, not {metric!r}")
        direction = content.get("direction", "minimize")
        if direction not in ("minimize", "maximize"):
            raise ProjectError(f"training_search.direction must be minimize or maximize, not {direction!r}")
        prune = content.get("prune", False)
        if not isinstance(prune, bool):
            raise ProjectError(f"training_search.prune must be true or false, not {prune!r}")
        return cls(
            parameters={name: _range(name, value) for name, value in parameters.items()},
            metric=metric,
            direction=direction,
            trials=_count("trials", content.get("trials", 20)),
            parallel=None if content.get("parallel") is None else _count("parallel", content["parallel"]),
            prune=prune,
        )

    @property
    def example(self) -> dict[str, str | float | bool | None]:
        """Parameters of a trial, by which a project is asked whether it would take them."""
        return {name: values.choices[0] if values.choices else values.low for name, values in self.parameters.items()}

    def refuse_both(self, parameters: Mapping[str, Any]) -> None:
        """Refuse what is varied and has a value, too.

        Raises:
            ProjectError: some are both.
        """
        if both := sorted(set(parameters) & set(self.parameters)):
            raise ProjectError(f"training_parameters and training_search both set {', '.join(both)}: leave one out")


def _keys(where: str, content: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(content) - known):
        raise ProjectError(f"{where} has no {', '.join(unknown)}: it may have {', '.join(sorted(known))}")


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ProjectError(f"training_search.{name} must be a whole number from 1, not {value!r}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _range(name: str, content: object) -> Range:
    where = f"training_search.parameters.{name}"
    if not _NAME.fullmatch(name):
        raise ProjectError(f"{where}: a parameter's name has letters, digits, _ and -, and begins with a letter or _")
    if not isinstance(content, dict):
        raise ProjectError(f"{where} must be {{low: …, high: …}} or {{choices: […]}}, not {content!r}")
    if "choices" in content:
        _keys(where, content, {"choices"})
        choices = content["choices"]
        if not isinstance(choices, list) or not choices:
            raise ProjectError(f"{where}.choices must be a list of values, not {choices!r}")
        if not all(isinstance(choice, str | bool) or _is_number(choice) for choice in choices):
            raise ProjectError(f"{where}.choices must be text, numbers, true or false, not {choices!r}")
        if len({str(choice) for choice in choices}) < len(choices):
            raise ProjectError(f"{where}.choices has a value twice: {choices!r}")
        return Range(choices=tuple(choices))
    _keys(where, content, {"low", "high", "log"})
    low, high, log = content.get("low"), content.get("high"), content.get("log", False)
    for end, value in (("low", low), ("high", high)):
        if not _is_number(value):
            raise ProjectError(f"{where}.{end} must be a number, not {value!r}")
    if not isinstance(log, bool):
        raise ProjectError(f"{where}.log must be true or false, not {log!r}")
    if low > high:  # type: ignore[operator]  # both are numbers
        raise ProjectError(f"{where}.low is {low!r}, more than its high, {high!r}")
    if log and low <= 0:  # type: ignore[operator]
        raise ProjectError(f"{where}.low is {low!r}: with log: true it must be more than 0")
    return Range(low, high, log)


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Settings of a search.

    Attributes:
        run: those that a single run has too; its parameters are the same for every trial.
        search: what is searched.
        data: directory that the project reads, None for none.
        seed: of the search.
    """

    run: Settings
    search: Search
    data: Path | None = None
    seed: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> SearchSettings:
        """Read the settings.

        Raises:
            ProjectError: one is missing or makes no sense.
        """
        search = Search.parse(environment.get("TRAINING_SEARCH", ""))
        fixed = dictionary(environment, "TRAINING_PARAMETERS")
        search.refuse_both(fixed)
        trial = fixed | search.example
        run = Settings.from_environment({**environment, "TRAINING_PARAMETERS": json.dumps(trial)})
        data = Path(environment["TRAINING_DATA"]) if environment.get("TRAINING_DATA") else None
        return cls(
            run=replace(run, parameters={name: text_of(value) for name, value in fixed.items()}),
            search=search,
            data=data,
            seed=int(environment.get("TRAINING_SEED") or 0),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what a trial's figures are: searches that share it are one.

        The number of trials is not part of it, so that a search goes on when there shall be more. Data may be large:
        of them it takes names, sizes and times.
        """
        search = asdict(self.search)
        del search["trials"], search["parallel"]
        digest = hashlib.sha256()
        described = [search, self.run.entry_point, dict(self.run.parameters), self.seed]
        digest.update(json.dumps(described, sort_keys=True).encode())
        for path in project_files(self.run.project):
            content = path.read_bytes()
            digest.update(f"\0{path.relative_to(self.run.project)}\0{len(content)}\0".encode())
            digest.update(content)
        for path in sorted(self.data.rglob("*")) if self.data else []:
            status = path.stat()
            digest.update(f"\0{path.relative_to(self.data or path)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
        return digest.hexdigest()


def project_files(project: Path) -> list[Path]:
    """Return the files of a project, sorted, without those that git or Python keeps for itself."""
    return sorted(
        path
        for path in project.rglob("*")
        if path.is_file() and not {".git", "__pycache__"}.intersection(path.relative_to(project).parts)
    )
