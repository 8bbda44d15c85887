"""``python -m projects.search``: a search, configured by the environment (see docs/training.md)."""

from __future__ import annotations

import logging
import os
import signal
import sys
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

# Nothing heavy is imported here: the workers' processes import this module again.
from projects.mlproject import ProjectError, script_of
from projects.run import DEFAULTS, configure_logging, first_in_path, programs_of
from projects.search_settings import SearchSettings

if TYPE_CHECKING:
    from distributed import Client, Future
    from optuna.trial import Trial

    from projects.study import Study
    from projects.workers import Outcome

#: How often what runs is looked at, to end what is hopeless, in seconds.
_LOOK_SECONDS = 1.0
_DIGEST = "search.digest"

_logger = logging.getLogger("projects")


def _stop(signal_number: int, _frame: FrameType | None) -> None:
    # As an exception, so that the workers end and the runs are marked.
    raise SystemExit(128 + signal_number)


@dataclass(slots=True)
class _Running:
    trial: Trial
    run_id: str
    is_hopeless: bool = False


def _carry_out(settings: SearchSettings, study: Study) -> None:
    """Carry out what is still to be done; what runs when this ends early is marked as cut off."""
    from projects.workers import workers

    running: dict[Future[Outcome], _Running] = {}
    try:
        with first_in_path(programs_of(settings.run)), workers(settings) as (client, parallel):
            _logger.info(
                "%d of %d trials to do, %d at once",
                settings.search.trials - study.done,
                settings.search.trials,
                parallel,
            )
            while True:
                while len(running) < min(parallel, settings.search.trials - study.done):
                    _begin(settings, study, client, running)
                if not running:
                    return
                _look(settings, study, running)
    finally:
        for left in running.values():
            study.end(left.trial, "interrupted")


def _begin(settings: SearchSettings, study: Study, client: Client, running: dict[Future[Outcome], _Running]) -> None:
    from projects.workers import Job, carry_out

    trial, run_id, parameters = study.begin()
    job = Job(
        run_id,
        str(settings.run.project.absolute()),
        script_of(settings.run.project, settings.run.entry_point),
        parameters,
    )
    running[client.submit(carry_out, job, key=f"trial-{run_id}", retries=0)] = _Running(trial, run_id)


def _look(settings: SearchSettings, study: Study, running: dict[Future[Outcome], _Running]) -> None:
    from distributed import wait

    try:
        done = wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        done = set()
    for future in done:
        _end(study, running[future], future)
        del running[future]
    for one in running.values():
        if settings.search.prune and not one.is_hopeless and study.is_hopeless(one.trial, one.run_id):
            one.is_hopeless = True
            study.kill(one.run_id)


def _end(study: Study, one: _Running, future: Future[Outcome]) -> None:
    values = ", ".join(f"{name} {value}" for name, value in one.trial.params.items())
    name = f"trial {one.trial.number} ({values})"
    if one.is_hopeless:
        study.end(one.trial, "pruned")
        _logger.info("%s: ended early, for it did worse than half of the others", name)
        return
    if error := future.exception():
        study.end(one.trial, "failed")
        _logger.warning("%s failed: its worker did: %s", name, error)
        return
    outcome = future.result()
    try:
        if outcome.status:
            reason = f"signal {-outcome.status}" if outcome.status < 0 else f"exit status {outcome.status}"
            raise ProjectError("; ".join([reason, *outcome.last_lines[-1:]]))
        value = study.value(one.run_id)
    except ProjectError as error:
        study.end(one.trial, "failed")
        _logger.warning("%s failed: %s", name, error)
        return
    study.end(one.trial, "complete", value)
    _logger.info("%s: %.6g, in %.1f s", name, value, outcome.seconds)


def _parent(settings: SearchSettings) -> str | None:
    """Return the run of an earlier process of this search, None when there is none."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(settings.run.experiment_name)
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`{_DIGEST}` = '{settings.digest}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def run(settings: SearchSettings) -> str:
    """Search, log the best and the plots to the search's run, and register the best trial's model.

    Args:
        settings: of the search.

    Returns:
        The version.

    Raises:
        ProjectError: no trial came to an end, or the best one logged no model.
    """
    import mlflow

    from projects.study import Study

    mlflow.set_experiment(settings.run.experiment_name)
    search = settings.search
    known = _parent(settings)
    with mlflow.start_run(run_id=known, run_name=None if known else "search") as parent:
        try:
            if known:
                _logger.info("this search was begun before, as run %s: it goes on", known)
            mlflow.set_tag(_DIGEST, settings.digest)
            mlflow.log_params({name: str(values) for name, values in search.parameters.items()})
            mlflow.log_params({"search_metric": search.metric, "search_direction": search.direction})
            study = Study(settings, parent.info.run_id)
            if study.done < search.trials:
                _carry_out(settings, study)
            if not study.complete:
                # The next run is a search of its own: what all of them failed of may be put right by then.
                mlflow.delete_tag(_DIGEST)
                raise ProjectError(f"none of {study.done} trials came to an end: each run has its log.txt")
            return _finish(settings, study)
        except (SystemExit, KeyboardInterrupt):
            mlflow.end_run("KILLED")
            raise


def _finish(settings: SearchSettings, study: Study) -> str:
    import mlflow

    from projects.gate import register
    from projects.plots import log_plots

    best = study.optuna.best_trial
    values = ", ".join(f"{name} {value}" for name, value in best.params.items())
    _logger.info(
        "best of %d: trial %d (%s): %s %.6g", study.done, best.number, values, settings.search.metric, best.value
    )
    mlflow.log_metric(settings.search.metric, study.value(best.user_attrs["run_id"]))
    mlflow.set_tag("search.best_run", best.user_attrs["run_id"])
    log_plots(study.optuna, settings.search.metric, is_pruned=settings.search.prune)
    alias = settings.run.promotion_alias if settings.run.may_promote else None
    return register(
        best.user_attrs["run_id"], settings.run.model_name, settings.search.metric, settings.search.direction, alias
    )


def main() -> int:
    """Search, and return the exit status: 0 only when the best trial's model was registered."""
    configure_logging()
    signal.signal(signal.SIGTERM, _stop)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    try:
        run(SearchSettings.from_environment(os.environ))
    except ProjectError as error:
        _logger.error("the search failed: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
