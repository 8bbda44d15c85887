"""The gate: a run's model is registered, and promoted when it is better than the champion by the same metric."""

from __future__ import annotations

import logging
import sys

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from projects.mlproject import ProjectError

_logger = logging.getLogger("projects")


def register(run_id: str, model_name: str, metric: str, direction: str, alias: str | None) -> str:
    """Register the model that a run logged, once, as ``challenger``; the better one gets the alias, a tie does not.

    Args:
        run_id: the run.
        model_name: registered model.
        metric: metric of the run and of the champion's.
        direction: ``minimize`` or ``maximize``.
        alias: what a better model gets, None to leave the alias to others.

    Returns:
        The version.

    Raises:
        ProjectError: the run logged no model, or no number as that metric.
    """
    client = MlflowClient()
    if known := client.search_model_versions(f"name = '{model_name}' and run_id = '{run_id}'"):
        _logger.info("%s version %s is this run's already", model_name, known[0].version)
        return str(known[0].version)
    run = client.get_run(run_id)
    if not run.outputs or not run.outputs.model_outputs:
        raise ProjectError(f"run {run_id} logged no model: call mlflow.<flavour>.log_model in it")
    ours = run.data.metrics.get(metric)
    # MLflow's database keeps what is infinite as its largest number, and what is no number as none.
    if ours is None or not abs(ours) < sys.float_info.max:
        logged = ", ".join(sorted(run.data.metrics)) or "no metric at all"
        raise ProjectError(f"run {run_id} logged no number as {metric}, by which it is compared, but {logged}")
    logged_model = max(run.outputs.model_outputs, key=lambda output: output.step)
    is_better, reason = _compare(client, model_name, metric, direction, ours)
    version = mlflow.register_model(f"models:/{logged_model.model_id}", model_name, tags={"promotion": reason}).version
    client.set_registered_model_alias(model_name, "challenger", version)
    if is_better and alias:
        client.set_registered_model_alias(model_name, alias, version)
    _logger.info("%s version %s: %s", model_name, version, reason)
    return str(version)


def _compare(client: MlflowClient, model_name: str, metric: str, direction: str, ours: float) -> tuple[bool, str]:
    try:
        champion = client.get_model_version_by_alias(model_name, "champion")
    except MlflowException as error:
        if error.error_code not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            raise
        return True, f"{metric} {ours:.6g}, and there is no champion"
    theirs = client.get_run(champion.run_id).data.metrics.get(metric) if champion.run_id else None
    if theirs is None:
        return False, f"the champion, version {champion.version}, has no {metric} to compare with"
    is_better = ours < theirs if direction == "minimize" else ours > theirs
    word = "beats" if is_better else "does not beat"
    return is_better, f"{word} the champion, version {champion.version}: {metric} {ours:.6g} against {theirs:.6g}"
