"""Which of three growers a wine is from: scikit-learn on a table that it ships. No code of the appliance is used."""

import argparse
from importlib.metadata import version

import mlflow
import numpy as np
from mlflow.models import infer_signature
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def drift_profile(table):
    """Return each column's deciles and the share of rows between them: what the model server counts against."""
    profile = {}
    for name, values in table.items():
        edges = np.unique(np.quantile(values, np.arange(0.1, 1, 0.1)))
        counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
        profile[f"input:{name}"] = {"edges": edges.tolist(), "expected": (counts / len(values)).tolist()}
    return profile


parser = argparse.ArgumentParser()
parser.add_argument("--regularization", type=float, default=1.0)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

table, growers = load_wine(return_X_y=True, as_frame=True)
# The rows are split alike in every run: only then are two models tested on the same.
train, test, train_growers, test_growers = train_test_split(table, growers, stratify=growers, random_state=0)
classifier = LogisticRegression(C=1 / arguments.regularization, random_state=arguments.seed)
model = make_pipeline(StandardScaler(), classifier).fit(train, train_growers)

with mlflow.start_run():
    mlflow.log_metric("test_accuracy", model.score(test, test_growers))
    # The metric that the gate compares.
    mlflow.log_metric("test_log_loss", log_loss(test_growers, model.predict_proba(test)))
    mlflow.sklearn.log_model(
        model,
        name="model",
        signature=infer_signature(train, model.predict(train)),
        input_example=test.head(2),
        pip_requirements=[f"{name}=={version(name)}" for name in ("scikit-learn", "numpy", "pandas")],
        metadata={"drift_profile": drift_profile(train)},
    )
