"""What MLflow runs of a logged model: "models from code", so this file is copied into it and needs no package of ours.

The search comes from the model's own ``searcher.py``, loaded under no global name: a server can hold two
versions of the model, with two versions of that file, side by side.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

_DEFAULT_TOP_K = 5
_MOST_OBSERVED = 256


class CodeSearch(PythonModel):
    """Answers each query with the records of the functions that fit it best."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model's own copy of the search, and its index."""
        spec = importlib.util.spec_from_file_location("searcher", context.artifacts["searcher"])
        if spec is None or spec.loader is None:
            raise ImportError(f"{context.artifacts['searcher']} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._searcher: Any = module.Searcher(context.artifacts["index"])

    def predict(  # type: ignore[override]  # MLflow looks for ``context`` and leaves it out where it is not
        self, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[list[dict[str, object]]]:
        """Return one list of records per query, best first.

        Args:
            model_input: queries, in English.
            params: ``top_k``, how many functions to return for each query (default 5).
        """
        results: list[list[dict[str, object]]] = self._searcher.search(
            list(model_input), int((params or {}).get("top_k", _DEFAULT_TOP_K))
        )
        return results

    def observe(self, model_input: list[str], _predictions: Any) -> dict[str, list[float]]:
        """Return what only the model can tell about its input, for the drift profile: the rate of unknown words."""
        return {"unknown_token_rate": [self._searcher.unknown_rate(query) for query in model_input[:_MOST_OBSERVED]]}


set_model(CodeSearch())
