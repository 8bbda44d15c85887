"""Logs and registers a small model of one flavour, in an environment of its own, and answers it there.

``python -m benchmarks.flavour_models <flavour> <name>`` prints a JSON object: what was registered, a question in
MLflow's protocol, and what the model answers where it was logged.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import scoring_server

_COLUMNS = ["a", "b", "c", "d"]
_HELPER = """
def grade(values, limits):
    return [sum(value > limit for limit in limits) for value in values]
"""
_PYTHON_MODEL = """
import json
from pathlib import Path

import mlflow
from benchmark_helper import grade


class Graded(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self._limits = json.loads(Path(context.artifacts["limits"]).read_text())

    def predict(self, context, model_input, params=None):
        return grade(model_input["a"] + model_input["b"], self._limits)


mlflow.models.set_model(Graded())
"""


def _data() -> tuple[pd.DataFrame, Any]:
    generator = np.random.default_rng(7)
    frame = pd.DataFrame(generator.normal(size=(200, len(_COLUMNS))), columns=_COLUMNS)
    return frame, (frame["a"] + frame["b"] ** 2 > 0.5).astype(int).to_numpy()


def _fitted(module: str, name: str, **options: Any) -> Any:
    """A classifier that has scikit-learn's interface."""
    return getattr(importlib.import_module(module), name)(**options).fit(*_data())


def _statsmodels() -> Any:
    frame, target = _data()
    return importlib.import_module("statsmodels.api").OLS(target, frame).fit()


def _onnx() -> Any:
    onnx = importlib.import_module("onnx")
    helper, numpy_helper, kind = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    weights = numpy_helper.from_array(np.array([[0.5], [1.5], [-1.0], [0.25]], np.float32), "weights")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", kind, [None, len(_COLUMNS)])],
        [helper.make_tensor_value_info("y", kind, [None, 1])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def _pyfunc(place: Path) -> dict[str, Any]:
    (place / "graded.py").write_text(_PYTHON_MODEL)
    (place / "benchmark_helper.py").write_text(_HELPER)
    (place / "limits.json").write_text("[-1.0, 0.0, 1.0]")
    sys.path.insert(0, str(place))
    return {
        "python_model": str(place / "graded.py"),
        "code_paths": [str(place / "benchmark_helper.py")],
        "artifacts": {"limits": str(place / "limits.json")},
    }


FLAVOURS: dict[str, tuple[list[str], Callable[[Path], dict[str, Any]]]] = {
    "sklearn": (["scikit-learn"], lambda _: {"sk_model": _fitted("sklearn.linear_model", "LogisticRegression")}),
    # On Linux the package without suffix brings libraries for a graphics card.
    "xgboost": (["xgboost-cpu", "scikit-learn"], lambda _: {"xgb_model": _fitted("xgboost", "XGBClassifier")}),
    "lightgbm": (
        ["lightgbm", "scikit-learn"],
        lambda _: {"lgb_model": _fitted("lightgbm", "LGBMClassifier", verbose=-1)},
    ),
    "catboost": (
        ["catboost"],
        lambda _: {
            "cb_model": _fitted("catboost", "CatBoostClassifier", iterations=20, silent=True, allow_writing_files=False)
        },
    ),
    "statsmodels": (["statsmodels"], lambda _: {"statsmodels_model": _statsmodels()}),
    "onnx": (["onnx", "onnxruntime"], lambda _: {"onnx_model": _onnx()}),
    "pyfunc": ([], _pyfunc),
}
"""By MLflow's name: the packages that it takes beside MLflow, and the arguments of its ``log_model``."""


def main(arguments: list[str]) -> None:
    """Log, register, answer and print."""
    flavour, name = arguments
    frame, _ = _data()
    frame = frame.head(5).astype(np.float32 if flavour == "onnx" else np.float64)
    mlflow.set_experiment(name)
    with tempfile.TemporaryDirectory() as place, mlflow.start_run():
        made = FLAVOURS[flavour][1](Path(place))
        log_model = importlib.import_module(f"mlflow.{flavour}").log_model
        info = log_model(name="model", registered_model_name=name, input_example=frame, **made)
        answered = io.StringIO()
        scoring_server.predictions_to_json(mlflow.pyfunc.load_model(info.model_uri).predict(frame), answered)
    version = mlflow.MlflowClient().get_model_version(name, info.registered_model_version)
    asked = {"dataframe_split": frame.to_dict(orient="split", index=False)}
    told = {
        "version": str(version.version),
        "source": version.source,
        "run_id": version.run_id,
        "model_id": info.model_id,
    }
    print(json.dumps({**told, "asked": asked, "answered": json.loads(answered.getvalue())}))


if __name__ == "__main__":
    main(sys.argv[1:])
