"""Projects that the tests run."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
EXPERIMENT = "our-experiment"

# A project that logs a figure as it is told, and a model.
MLPROJECT = """\
name: figure
entry_points:
  main:
    parameters:
      figure: {type: float}
      text: {default: a default}
    command: python train.py --figure {figure} --text {text}
  fail:
    command: python -c "raise SystemExit(3)"
"""
TRAIN = """\
import argparse, os, pathlib, mlflow

class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input

parser = argparse.ArgumentParser()
parser.add_argument("--figure", type=float)
parser.add_argument("--text")
arguments = parser.parse_args()
pathlib.Path("left-behind").touch()
with mlflow.start_run():
    mlflow.log_metric("rmse", arguments.figure)
    mlflow.set_tag("text", arguments.text)
    mlflow.pyfunc.log_model(name="model", python_model=Echo(), pip_requirements=[])
"""
