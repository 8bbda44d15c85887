"""Loads, but does not answer where it is served."""

import os

import mlflow


class BrokenOnPredict(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]):
        if "MODEL_SERVER_MODEL" in os.environ:
            raise RuntimeError("shapes do not match")
        return model_input


mlflow.models.set_model(BrokenOnPredict())
