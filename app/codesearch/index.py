"""Writes the index that :class:`codesearch.searcher.Searcher` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from codesearch.corpus import Function
from codesearch.lexical import WEIGHTED, Bm25
from codesearch.towers import TwoTowers


def write_index(directory: Path, functions: Sequence[Function], towers: TwoTowers, lexical_weight: float) -> None:
    """Write an index of a corpus; the same corpus and model give the same bytes.

    Args:
        directory: an empty directory.
        functions: what can be found; at least one.
        towers: the model.
        lexical_weight: weight of the lexical half of the score; the other half's is 1.
    """
    lexical = Bm25(functions, WEIGHTED, list(towers.query.words))
    by_word = lexical.weights.tocsc()
    by_word.sort_indices()
    arrays = {
        "query_vectors": towers.query.vectors * towers.query.weights[:, None],
        "function_vectors": towers.encode_functions(functions),
        "postings_starts": by_word.indptr.astype(np.int64),
        "postings_functions": by_word.indices.astype(np.int32),
        "postings_scores": by_word.data.astype(np.float32),
        "bounds": lexical.bounds,
    }
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", np.ascontiguousarray(array))
    index = {
        "lexical_weight": lexical_weight,
        "words": list(lexical.words),
        "functions": [[f.name, f.file, f.line, f.signature] for f in functions],
    }
    (directory / "index.json").write_text(json.dumps(index, separators=(",", ":")), encoding="ascii")
