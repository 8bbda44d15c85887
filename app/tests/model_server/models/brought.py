"""A model of a package that the image does not have."""

import mlflow


class Brought(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str]):
        import only_there

        return [f"{query} {only_there.WORD}" for query in model_input]


mlflow.models.set_model(Brought())
