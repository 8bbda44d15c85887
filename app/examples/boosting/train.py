"""Gradient boosting, XGBoost's, on a large table that scikit-learn makes. No code of the appliance is used."""

import argparse
from importlib.metadata import version

import mlflow
import pandas as pd
from mlflow.models import infer_signature
from sklearn.datasets import make_friedman1
from sklearn.model_selection import train_test_split
from xgboost import XGBRegressor

parser = argparse.ArgumentParser()
for name, default in {"rows": 200_000, "trees": 200, "depth": 6, "seed": 0}.items():
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--learning-rate", type=float, default=0.1)
arguments = parser.parse_args()

# Ten columns, five of which matter. The same table in every run: only then are two models tested on the same.
columns, target = make_friedman1(n_samples=arguments.rows, noise=1.0, random_state=0)
table = pd.DataFrame(columns, columns=[f"x{number}" for number in range(columns.shape[1])])
train, test, train_target, test_target = train_test_split(table, target, test_size=0.2, random_state=0)
model = XGBRegressor(
    n_estimators=arguments.trees,
    max_depth=arguments.depth,
    learning_rate=arguments.learning_rate,
    subsample=0.8,
    random_state=arguments.seed,
    eval_metric="rmse",
)

with mlflow.start_run():
    model.fit(train, train_target, eval_set=[(test, test_target)], verbose=False)
    # After each tree, so that a search can end what does badly; the last one is what the gate compares.
    for step, rmse in enumerate(model.evals_result()["validation_0"]["rmse"]):
        if (step + 1) % 10 == 0 or step + 1 == arguments.trees:
            mlflow.log_metric("rmse", rmse, step=step)
    mlflow.xgboost.log_model(
        model,
        name="model",
        signature=infer_signature(train, model.predict(train.head())),
        input_example=test.head(2),
        pip_requirements=[f"{name}=={version(name)}" for name in ("xgboost-cpu", "scikit-learn", "numpy", "pandas")],
    )
