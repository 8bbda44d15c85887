"""What a search looks like: Optuna's plots and a table, as artifacts of its run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import mlflow
import numpy as np
import optuna
from matplotlib import pyplot as plt
from optuna.visualization import matplotlib as draw

_logger = logging.getLogger("projects")


def log_plots(study: optuna.Study, metric: str, is_pruned: bool) -> None:
    """Log the plots and the table of all trials to MLflow's active run; a plot that needs more trials is left out.

    Args:
        study: the study, with a complete trial at least.
        metric: what to call the value.
        is_pruned: whether trials have intermediate values.
    """
    mpl.use("Agg")
    plots: dict[str, Callable[[], Any]] = {
        "optimization_history": lambda: draw.plot_optimization_history(study, target_name=metric),
        "parameter_importances": lambda: draw.plot_param_importances(study, target_name=metric),
        "parallel_coordinates": lambda: draw.plot_parallel_coordinate(study, target_name=metric),
        "slices": lambda: draw.plot_slice(study, target_name=metric),
    }
    if is_pruned:
        plots["intermediate_values"] = lambda: draw.plot_intermediate_values(study)
    for name, plot in plots.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna's, that plots by matplotlib are experimental
                axes = np.ravel(plot())[0]
        except (ValueError, RuntimeError, ZeroDivisionError) as error:
            _logger.info("no plot of %s: %s", name.replace("_", " "), error)
            continue
        figure = axes.get_figure()
        mlflow.log_figure(figure, f"search/{name}.png", save_kwargs={"bbox_inches": "tight", "dpi": 120})
        plt.close(figure)
    table = study.trials_dataframe(("number", "value", "state", "params", "user_attrs"))
    mlflow.log_text(table.to_csv(index=False), "search/trials.csv")
