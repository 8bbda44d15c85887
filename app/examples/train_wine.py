"""Bring your own training: this file honours the contract of docs/training.md, and that is all it takes.

It trains scikit-learn on a table that ships with it, logs and registers the model, and lets it become the champion
only when it is better than the champion on the same test rows. Run it as ``python train_wine.py``.
"""

import os
import sys
from importlib.metadata import version

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

MODEL_NAME = os.environ.get("MODEL_NAME", "wine")
SEED = int(os.environ.get("TRAINING_SEED", "0"))


def drift_profile(table):
    """Return each column's deciles and the share of rows between them: what the model server counts against."""
    profile = {}
    for name, values in table.items():
        edges = np.unique(np.quantile(values, np.arange(0.1, 1, 0.1)))
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        profile[f"input:{name}"] = {"edges": edges.tolist(), "expected": (counts / len(values)).tolist()}
    return profile


def champion_loss(rows, classes):
    """Return the champion's loss on the test rows, infinite when there is no champion."""
    try:
        champion = mlflow.sklearn.load_model(f"models:/{MODEL_NAME}@champion")
    except MlflowException:
        return np.inf
    return log_loss(classes, champion.predict_proba(rows))


def main():
    """Train, log, register; whatever fails raises, and the exit status is not 0."""
    mlflow.set_experiment(os.environ.get("EXPERIMENT_NAME", "wine"))
    table, classes = load_wine(return_X_y=True, as_frame=True)
    # The rows are split alike in every run: only then are two models tested on the same.
    train, test, train_classes, test_classes = train_test_split(table, classes, stratify=classes, random_state=0)
    with mlflow.start_run(run_name="wine"):
        model = make_pipeline(StandardScaler(), LogisticRegression(random_state=SEED)).fit(train, train_classes)
        loss = log_loss(test_classes, model.predict_proba(test))
        mlflow.log_param("seed", SEED)
        mlflow.log_metrics({"test_log_loss": loss, "test_accuracy": model.score(test, test_classes)})
        mlflow.log_input(mlflow.data.from_pandas(train, name="wine"), context="training")
        info = mlflow.sklearn.log_model(
            model,
            name="model",
            signature=infer_signature(train, model.predict(train)),
            input_example=test.head(2),
            pip_requirements=[f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "pandas")],
            metadata={"drift_profile": drift_profile(train)},
        )
    best = champion_loss(test, test_classes)
    client = MlflowClient()
    registered = mlflow.register_model(info.model_uri, MODEL_NAME)
    client.set_registered_model_alias(MODEL_NAME, "challenger", registered.version)
    if loss < best:
        client.set_registered_model_alias(MODEL_NAME, "champion", registered.version)
    print(f"{MODEL_NAME} version {registered.version}: log loss {loss:.4f}, the champion's {best:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
