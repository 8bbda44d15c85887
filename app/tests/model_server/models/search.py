"""A small stand-in for the default model: strings in, records out, and what a test needs it to do wrong."""

import os
import time
from pathlib import Path

import mlflow


class Search(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: list[str], params: dict | None = None):
        top_k = (params or {}).get("top_k", 2)
        return [self._search(query, top_k) for query in model_input]

    def _search(self, query, top_k):
        if query == "raise":
            raise RuntimeError("a secret of the model")
        if query == "exit":
            raise SystemExit(1)
        if query.startswith("wait for "):
            # Until the test makes that file.
            file = Path(query.removeprefix("wait for "))
            while not file.exists():
                time.sleep(0.01)
        if query == "process":
            return [{"function": "process", "score": os.getpid()}]
        return [{"function": f"{query}_{rank}", "score": 1 / (rank + 1)} for rank in range(top_k)]


mlflow.models.set_model(Search())
