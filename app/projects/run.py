"""``python -m projects.run``: one run of a project, configured by the environment (see docs/training.md)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from projects.mlproject import ProjectError, complaints, script_of, text_of

DEFAULTS = {
    # There is no git in the image.
    "GIT_PYTHON_REFRESH": "quiet",
    # About a minute of patience with a tracking server that restarts; MLflow's own default is four.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
ENVIRONMENTS = "http://environments:8000"
ENVIRONMENTS_DIRECTORY = "/var/lib/environments"
DIRECTIONS = ("minimize", "maximize")

_logger = logging.getLogger("projects")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of a run.

    Attributes:
        experiment_name: experiment of the run.
        model_name: registered model.
        project: directory of the project.
        entry_point: of the project.
        parameters: of the entry point.
        source: where the project comes from, as people know it.
        commit: its commit, empty when it is not from git.
        gate: metric and direction by which the run's model is promoted, None when the project does that itself.
        may_promote: whether a better model becomes the champion at once.
        promotion_alias: what a better model gets: ``champion``, or another where somebody signs it first.
        environments: address of the service that makes environments.
        environments_directory: where its environments are mounted.
    """

    experiment_name: str
    model_name: str
    project: Path
    entry_point: str = "main"
    parameters: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    commit: str = ""
    gate: tuple[str, str] | None = None
    may_promote: bool = True
    promotion_alias: str = "champion"
    environments: str = ENVIRONMENTS
    environments_directory: Path = Path(ENVIRONMENTS_DIRECTORY)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings.

        Raises:
            ProjectError: one is missing or makes no sense.
        """
        for name in ("MLFLOW_TRACKING_URI", "EXPERIMENT_NAME", "MODEL_NAME", "TRAINING_PROJECT"):
            if not environment.get(name):
                raise ProjectError(f"{name} is not set")
        project = Path(environment["TRAINING_PROJECT"])
        entry_point = environment.get("TRAINING_ENTRY_POINT") or "main"
        parameters = dictionary(environment, "TRAINING_PARAMETERS")
        # The controller has looked at directories; at what came by git, nobody.
        if wrong := complaints(project, entry_point, parameters):
            raise ProjectError("\n".join(wrong))
        gate = dictionary(environment, "TRAINING_GATE")
        if gate and gate.get("direction") not in DIRECTIONS:
            raise ProjectError(f"training_gate.direction must be minimize or maximize, not {gate.get('direction')!r}")
        if gate and not gate.get("metric"):
            raise ProjectError("training_gate.metric must name a metric that the project logs")
        return cls(
            experiment_name=environment["EXPERIMENT_NAME"],
            model_name=environment["MODEL_NAME"],
            project=project,
            entry_point=entry_point,
            parameters={name: text_of(value) for name, value in parameters.items()},
            source=environment.get("TRAINING_PROJECT_SOURCE", ""),
            commit=environment.get("TRAINING_PROJECT_COMMIT", ""),
            gate=(str(gate["metric"]), str(gate["direction"])) if gate else None,
            may_promote=environment.get("TRAINING_MAY_PROMOTE", "true").lower() != "false",
            promotion_alias=environment.get("TRAINING_PROMOTION_ALIAS") or "champion",
            environments=environment.get("TRAINING_ENVIRONMENTS") or ENVIRONMENTS,
            environments_directory=Path(environment.get("TRAINING_ENVIRONMENTS_DIRECTORY") or ENVIRONMENTS_DIRECTORY),
        )


def dictionary(environment: Mapping[str, str], name: str) -> dict[str, object]:
    """Return what a variable has as JSON, an empty dictionary when it is not set.

    Raises:
        ProjectError: it is no dictionary.
    """
    text = environment.get(name) or "{}"
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ProjectError(f"{name} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ProjectError(f"{name} must be a dictionary, not {text}")
    return content


def programs_of(settings: Settings) -> Path | None:
    """Return the directory of the programs of a project's environment, None when the image's packages are enough.

    Raises:
        ProjectError: its environment is refused.
    """
    from projects.environment import is_satisfied, make, requirements_of

    requirements = requirements_of(settings.project)
    if is_satisfied(requirements):
        _logger.info("environment: the image's packages are what the project requires")
        return None
    return make(requirements, settings.environments, settings.environments_directory)


def run_entry_point(
    project: Path,
    entry_point: str,
    parameters: Mapping[str, str],
    experiment: str,
    *,
    programs: Path | None = None,
    tags: Mapping[str, str] | None = None,
    parent_run_id: str | None = None,
) -> str:
    """Run an entry point to its end, by MLflow, in a copy of the project that it may write to.

    Args:
        project: directory of the project.
        entry_point: of the project, or a script in it.
        parameters: of the entry point.
        experiment: name of the run's experiment.
        programs: directory of the programs of the project's environment, None for this program's own.
        tags: of the run, beside MLflow's own.
        parent_run_id: run that it is a part of.

    Returns:
        The run.

    Raises:
        ProjectError: the entry point failed; its run is marked so.
    """
    import mlflow
    from mlflow.exceptions import ExecutionException
    from mlflow.projects.utils import get_or_create_run

    client = mlflow.MlflowClient()
    experiment_id = mlflow.set_experiment(experiment).experiment_id
    with tempfile.TemporaryDirectory(prefix="project-") as directory, first_in_path(programs):
        place = Path(directory) / project.name
        shutil.copytree(project, place, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        script, values = script_of(place, entry_point), dict(parameters)
        run = get_or_create_run(None, str(place), experiment_id, str(place), None, script, values)
        run_id = str(run.info.run_id)
        for name, value in {**(tags or {}), **({"mlflow.parentRunId": parent_run_id} if parent_run_id else {})}.items():
            client.set_tag(run_id, name, value)
        try:
            mlflow.projects.run(
                str(place), script, parameters=values, experiment_id=experiment_id, env_manager="local", run_id=run_id
            )
        except ExecutionException as error:
            raise ProjectError(f"{script} failed: what it said stands above. {error}") from error
        finally:
            # Also when this is told to stop, or the entry point could not be begun.
            if client.get_run(run_id).info.status == "RUNNING":
                client.set_terminated(run_id, "FAILED")
    return run_id


@contextlib.contextmanager
def first_in_path(programs: Path | None) -> Iterator[None]:
    """Lead the block's commands to the programs of an environment, None for this program's own."""
    before = os.environ["PATH"]
    # This program's own where the project has none: `python` is then the one that runs this.
    os.environ["PATH"] = f"{programs or Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def run(settings: Settings) -> str:
    """Run a project, and with a gate register and promote its model.

    Returns:
        The run.

    Raises:
        ProjectError: it cannot be run, failed, or logged no model for the gate.
    """
    from projects.gate import register

    tags = {"mlflow.source.name": settings.source, "mlflow.source.git.commit": settings.commit}
    run_id = run_entry_point(
        settings.project,
        settings.entry_point,
        settings.parameters,
        settings.experiment_name,
        programs=programs_of(settings),
        tags={name: value for name, value in tags.items() if value},
    )
    if settings.gate:
        alias = settings.promotion_alias if settings.may_promote else None
        register(run_id, settings.model_name, *settings.gate, alias)
    return run_id


def configure_logging() -> None:
    """Log to standard output, which is the journal."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    _logger.handlers = [handler]
    _logger.propagate = False
    _logger.setLevel(logging.INFO)


def main() -> int:
    """Run, and return the exit status: 0 only when the entry point, and the gate, ended well."""
    configure_logging()
    # As MLflow expects to be stopped: it ends the entry point, and marks the run.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        run(Settings.from_environment(os.environ))
    except ProjectError as error:
        _logger.error("the run failed: %s", error)
        return 1
    except KeyboardInterrupt:
        _logger.error("the run was stopped")
        return 128 + signal.SIGTERM
    return 0


if __name__ == "__main__":
    sys.exit(main())
