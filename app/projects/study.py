"""An Optuna study that MLflow remembers: each trial is a child run, from which the study is made anew after a crash."""

from __future__ import annotations

import logging
import math
import shlex
import warnings
from typing import Any

import optuna
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.projects.utils import get_or_create_run
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial, TrialState

from projects.mlproject import ProjectError, script_of, text_of
from projects.search_settings import Range, Search, SearchSettings

_logger = logging.getLogger("projects")

#: Tags of a child run: its number, how the search left it, and which run it does again.
TRIAL, STATE, REPEATS = "search.trial", "search.state", "search.repeats"

_STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED", "interrupted": "KILLED"}


def distribution(values: Range) -> BaseDistribution:
    """Return a range as Optuna has it."""
    if values.choices:
        return CategoricalDistribution(values.choices)
    if values.low is None or values.high is None:
        raise ProjectError("a range has two ends")
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _decoded(values: Range, text: str) -> Any:
    """Return the value that MLflow recorded: quoted, as it stood in the entry point's command."""
    if values.choices:
        return next(choice for choice in values.choices if shlex.quote(text_of(choice)) == text)
    return int(text) if isinstance(distribution(values), IntDistribution) else float(text)


class Study:
    """The study of one search, whose runs are children of MLflow's active run.

    Attributes:
        optuna: the study itself.
    """

    def __init__(self, settings: SearchSettings, parent_run_id: str) -> None:
        """Make the study, with all that its runs know already; trials that were cut off come first, again."""
        self._settings = settings
        self._search: Search = settings.search
        self._client = MlflowClient()
        self._distributions = {name: distribution(values) for name, values in self._search.parameters.items()}
        self._experiment = self._client.get_run(parent_run_id).info.experiment_id
        runs = self._children(parent_run_id)
        # As many drawn before, so many other numbers: the first ones would be drawn a second time.
        sampler = optuna.samplers.TPESampler(seed=settings.seed + len(runs))
        # Of what is logged once, at step 0, nothing is ended early.
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=1) if self._search.prune else optuna.pruners.NopPruner()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.optuna = optuna.create_study(direction=self._search.direction, sampler=sampler, pruner=pruner)
        repeated = {run.data.tags.get(REPEATS) for run in runs}
        for run in runs:
            trial = self._remembered(run)
            self.optuna.add_trial(trial)
            if trial.user_attrs["state"] == "interrupted" and run.info.run_id not in repeated:
                _logger.info("trial %d was cut off, and is done again", trial.number)
                self.optuna.enqueue_trial(trial.params, user_attrs={"repeats": run.info.run_id})

    @property
    def done(self) -> int:
        """How many trials count as done: all that ended but those that were cut off."""
        return sum(
            trial.state.is_finished() and trial.user_attrs.get("state") != "interrupted" for trial in self.optuna.trials
        )

    @property
    def complete(self) -> list[FrozenTrial]:
        """The trials that have a value."""
        return self.optuna.get_trials(states=[TrialState.COMPLETE])

    def begin(self) -> tuple[Trial, str, dict[str, str]]:
        """Return the next trial, its new child run, and the entry point's parameters."""
        trial = self.optuna.ask(self._distributions)
        parameters = {name: text_of(value) for name, value in trial.params.items()} | dict(
            self._settings.run.parameters
        )
        project = str(self._settings.run.project)
        script = script_of(self._settings.run.project, self._settings.run.entry_point)
        # As MLflow makes the run of a project: with source, entry point and parameters.
        run = get_or_create_run(None, project, self._experiment, project, None, script, parameters)
        run_id = str(run.info.run_id)
        tags = {
            "mlflow.runName": f"trial-{trial.number}",
            "mlflow.source.name": self._settings.run.source,
            "mlflow.source.git.commit": self._settings.run.commit,
            REPEATS: trial.user_attrs.get("repeats"),
            # The last: what has it is a trial.
            TRIAL: trial.number,
        }
        for name, value in tags.items():
            if value not in (None, ""):
                self._client.set_tag(run_id, name, value)
        trial.set_user_attr("run_id", run_id)
        return trial, run_id, parameters

    def end(self, trial: Trial, state: str, value: float | None = None) -> None:
        """Write down how a trial ended: complete, pruned, failed, or interrupted, and so to be done again."""
        trial.set_user_attr("state", state)
        self._mark(trial.user_attrs["run_id"], state)
        self.optuna.tell(trial, value, _STATES.get(state, TrialState.FAIL))

    def value(self, run_id: str) -> float:
        """Return what a trial's run logged.

        Raises:
            ProjectError: nothing, or no number.
        """
        metrics = self._client.get_run(run_id).data.metrics
        value = metrics.get(self._search.metric)
        if value is None:
            logged = ", ".join(sorted(metrics)) or "no metric at all"
            raise ProjectError(f"it logged no metric {self._search.metric}, but {logged}")
        if not math.isfinite(value):
            raise ProjectError(f"its {self._search.metric} is {value}")
        return value

    def is_hopeless(self, trial: Trial, run_id: str) -> bool:
        """Report what a trial's run has logged by now, and return whether the trial is to be ended."""
        seen = self.optuna.trials[trial.number].intermediate_values
        for step, value in self._history(run_id).items():
            if step not in seen:
                trial.report(value, step)
        return trial.should_prune()

    def kill(self, run_id: str) -> None:
        """Let a trial be ended by its worker."""
        self._client.set_terminated(run_id, "KILLED")

    def _mark(self, run_id: str, state: str) -> None:
        self._client.set_tag(run_id, STATE, state)
        if self._client.get_run(run_id).info.status != _STATUS[state]:
            self._client.set_terminated(run_id, _STATUS[state])

    def _history(self, run_id: str) -> dict[int, float]:
        history = self._client.get_metric_history(run_id, self._search.metric)
        return {metric.step: metric.value for metric in history if metric.step >= 0}

    def _children(self, parent_run_id: str) -> list[Run]:
        children = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
        page = self._client.search_runs([self._experiment], children)
        found = list(page)
        while page.token:
            page = self._client.search_runs([self._experiment], children, page_token=page.token)
            found += page
        # One without a number was cut off before its trial began: another takes its place.
        return sorted((run for run in found if TRIAL in run.data.tags), key=lambda run: int(run.data.tags[TRIAL]))

    def _remembered(self, run: Run) -> FrozenTrial:
        """Return the trial of a run that an earlier process left; what it left open is closed."""
        run_id, value = run.info.run_id, run.data.metrics.get(self._search.metric)
        state = run.data.tags.get(STATE)
        if state is None:
            # The search died before it heard of the end; who is done is not repeated.
            is_done = run.info.status == "FINISHED" and value is not None and math.isfinite(value)
            state = "complete" if is_done else "interrupted"
            self._mark(run_id, state)
        parameters = {name: _decoded(values, run.data.params[name]) for name, values in self._search.parameters.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.trial.create_trial(
                state=_STATES.get(state, TrialState.FAIL),
                value=value if state == "complete" else None,
                params=parameters,
                distributions=self._distributions,
                user_attrs={"run_id": run_id, "state": state},
                intermediate_values=self._history(run_id) if self._search.prune else {},
            )
