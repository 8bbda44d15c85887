"""Cannot be loaded where it is served."""

import os

import mlflow


class BrokenOnLoad(mlflow.pyfunc.PythonModel):
    def load_context(self, context):  # noqa: ARG002
        if "MODEL_SERVER_MODEL" in os.environ:
            raise RuntimeError("no such device")

    def predict(self, model_input: list[str]):
        return model_input


mlflow.models.set_model(BrokenOnLoad())
