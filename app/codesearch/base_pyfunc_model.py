"""What MLflow runs of a logged base model ("models from code"): English in, vectors out."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class TextEncoder(PythonModel):
    """The base model's tower for English."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model's own way to split text, and its vectors."""
        spec = importlib.util.spec_from_file_location("searcher", context.artifacts["searcher"])
        if spec is None or spec.loader is None:
            raise ImportError(f"{context.artifacts['searcher']} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._subtokens: Any = module.subtokens
        towers = Path(context.artifacts["towers"])
        words = json.loads((towers / "query_words.json").read_text(encoding="ascii"))
        self._rows = {word: number for number, word in enumerate(words)}
        self._vectors = np.load(towers / "query_vectors.npy") * np.load(towers / "query_weights.npy")[:, None]

    def predict(  # type: ignore[override]  # MLflow looks for ``context`` and leaves it out where it is not
        self, model_input: list[str]
    ) -> list[list[float]]:
        """Return one vector of length 1 for each text, of zeros for a text without a known word."""
        return [self._encode(text) for text in model_input]

    def _encode(self, text: str) -> list[float]:
        counts: dict[int, int] = {}
        for word in self._subtokens(text):
            if (row := self._rows.get(word)) is not None:
                counts[row] = counts.get(row, 0) + 1
        vector = (1 + np.log(list(counts.values()))) @ self._vectors[list(counts)]
        result: list[float] = (vector / max(float(np.linalg.norm(vector)), 1e-6)).tolist()
        return result


set_model(TextEncoder())
