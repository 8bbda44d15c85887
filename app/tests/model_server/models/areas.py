"""Three columns in, two out."""

import mlflow
import pandas as pd


class Areas(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):  # noqa: ARG002
        area = model_input["width"] * model_input["count"] * (params or {}).get("factor", 1.0)
        return pd.DataFrame({"area": area, "label": model_input["name"] + "!"})


mlflow.models.set_model(Areas())
