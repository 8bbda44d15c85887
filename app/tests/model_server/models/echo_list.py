"""Answers with what it was given; MLflow takes its signature from the type hint."""

import mlflow


class EchoList(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str], params: dict | None = None):
        return [[type(model_input).__name__, repr(model_input)], repr(params)]


mlflow.models.set_model(EchoList())
