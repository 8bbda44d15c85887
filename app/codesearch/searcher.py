"""The search itself: what a served model needs, in one file that needs nothing but NumPy.

This file travels inside every logged model, so that a model answers for ever as it was trained, in any image,
whatever becomes of this package; training imports it for the same reason: text is split in one place only.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+|\d+")
#: Queries scored together: enough to read the function vectors once for many, few enough to stay in the cache.
_BLOCK = 16

Record = dict[str, str | int | float]


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return a lower-case word without the commonest English endings: ``parses``, ``parsing`` → ``pars``."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if len(word) > 5 and word.endswith("ing"):
        word = word[:-3]
    elif len(word) > 4 and word.endswith("ed"):
        word = word[:-2]
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def subtokens(text: str) -> list[str]:
    """Return the stems of all words in ``text``, in order.

    Identifiers fall into their parts (``readCSVFile``, ``read_csv_file`` → ``read csv file``); single characters
    are left out.
    """
    return [stem(part.lower()) for part in _PARTS.findall(text) if len(part) > 1]


class Searcher:
    """Ranks the functions of a corpus by how well they do what a text asks for.

    The score of a function is the cosine of its vector and the query's, plus ``lexical_weight`` times the share of
    the largest BM25 score the query could have. The index directory holds ``index.json`` (the words, the functions'
    records, the weight) and arrays:

    - ``query_vectors.npy``, float32 (known words, dimensions): a query's vector is their sum, scaled to length 1;
    - ``function_vectors.npy``, float32 (functions, dimensions), each of length 1;
    - ``postings_{starts,functions,scores}.npy``: for each word the functions that hold it and its BM25 score there;
    - ``bounds.npy``, float32 (words,): the largest BM25 score a word could add.

    Args:
        directory: where the index is.

    Attributes:
        lexical_weight: weight of the lexical half of the score.
    """

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory)
        index: dict[str, Any] = json.loads((path / "index.json").read_text(encoding="utf-8"))
        self._words: dict[str, int] = {word: number for number, word in enumerate(index["words"])}
        self._functions: list[list[Any]] = index["functions"]
        self.lexical_weight = float(index["lexical_weight"])
        # Mapped, not read: the workers of a server share one copy.
        self._query_vectors, self._function_vectors, self._starts, self._postings, self._scores, self._bounds = (
            np.asarray(np.load(path / f"{name}.npy", mmap_mode="r"))
            for name in (
                "query_vectors",
                "function_vectors",
                "postings_starts",
                "postings_functions",
                "postings_scores",
                "bounds",
            )
        )

    def __len__(self) -> int:
        """Return the number of functions."""
        return len(self._functions)

    def unknown_rate(self, query: str) -> float:
        """Return the share of the query's words that training never met, from 0 to 1; 1 for a query without words."""
        words = subtokens(query)
        return sum(self._words.get(word, -1) < 0 for word in words) / len(words) if words else 1.0

    def scores(self, queries: list[str]) -> NDArray[np.float32]:
        """Return the score of every function for every query, float32 (queries, functions).

        A query without a known word scores 0 everywhere.
        """
        vectors = np.zeros((len(queries), self._query_vectors.shape[1]), np.float32)
        counted: list[dict[int, int]] = []
        for row, query in enumerate(queries):
            counts: dict[int, int] = {}
            for word in subtokens(query):
                if (number := self._words.get(word)) is not None:
                    counts[number] = counts.get(number, 0) + 1
            counted.append(counts)
            known = [number for number in counts if number < len(self._query_vectors)]
            if known:
                weights = 1 + np.log(np.array([counts[number] for number in known], np.float32))
                vector = weights @ self._query_vectors[known]
                vectors[row] = vector / max(float(np.sqrt(vector @ vector)), 1e-6)
        scores: NDArray[np.float32] = vectors @ self._function_vectors.T
        for row, counts in enumerate(counted):
            bound = sum(float(self._bounds[number]) * count for number, count in counts.items())
            for number, count in counts.items():
                part = slice(self._starts[number], self._starts[number + 1])
                scores[row, self._postings[part]] += self._scores[part] * np.float32(
                    self.lexical_weight * count / bound
                )
        return scores

    def search(self, queries: list[str], top_k: int = 5) -> list[list[Record]]:
        """Return for each query the ``top_k`` best functions, best first; none for a query without a known word.

        Returns:
            Records with ``function`` (qualified by its classes), ``file`` (relative to the corpus), ``line`` (from 1),
            ``signature`` and ``score`` (higher is better; comparable between queries).

        Raises:
            ValueError: ``top_k`` is below 1.
        """
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {top_k}")
        results: list[list[Record]] = []
        for start in range(0, len(queries), _BLOCK):
            block = self.scores(queries[start : start + _BLOCK])
            results += [self._best(row, min(top_k, len(self))) for row in block]
        return results

    def _best(self, scores: NDArray[np.float32], count: int) -> list[Record]:
        best = np.argpartition(scores, -count)[-count:]
        best = best[np.lexsort((best, -scores[best]))]
        return [self._record(number, float(scores[number])) for number in best.tolist()] if scores.any() else []

    def _record(self, number: int, score: float) -> Record:
        function, file, line, signature = self._functions[number]
        return {
            "function": function,
            "file": file,
            "line": line,
            "signature": signature,
            "score": round(score, 4),
        }
