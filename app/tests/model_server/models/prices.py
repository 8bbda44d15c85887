"""A small model of a table: numbers, a text, a boolean and an optional column in, a number for each row out."""

import mlflow


class Prices(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        prices = model_input["area"] * (params or {}).get("rate", 1000.0) + model_input["garden"] * 500
        if "distance" in model_input:
            prices -= model_input["distance"].fillna(0)
        return prices.tolist()


mlflow.models.set_model(Prices())
