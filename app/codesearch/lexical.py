"""BM25: the baseline to beat, and in a version that weighs names, one half of the model's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from codesearch.corpus import Function
from codesearch.searcher import subtokens
from codesearch.towers import Floats, count_matrix


@dataclass(frozen=True, slots=True)
class Bm25Settings:
    """How BM25 weighs.

    Attributes:
        saturation: k1; the larger, the more a repeated word counts.
        length_penalty: b, from 0 to 1; the larger, the less a long function gets.
        name_weight: how often a word of the name counts.
        place_weight: how often a word of modules and classes counts.
    """

    saturation: float
    length_penalty: float
    name_weight: int
    place_weight: int


#: Lucene's and Elasticsearch's defaults over the function's plain text.
BASELINE = Bm25Settings(1.2, 0.75, 1, 1)
#: From a small grid on standard-library functions, where its best settings differed by less than noise.
WEIGHTED = Bm25Settings(2.0, 0.9, 3, 2)


class Bm25:
    """BM25 scores of a corpus.

    Args:
        functions: the corpus.
        settings: how to weigh.
        words: rows of words that must be known first, e.g. those of another model; the corpus's own are added.

    Attributes:
        words: row of each word.
        bounds: the largest score each word could add, float32 (words,).
        weights: score that each word adds to each function, float32 (functions, words).
    """

    def __init__(self, functions: Sequence[Function], settings: Bm25Settings, words: Sequence[str] = ()) -> None:
        bags = [
            function.name_words.split() * settings.name_weight
            + function.place_words.split() * settings.place_weight
            + function.body_words.split()
            for function in functions
        ]
        first = dict.fromkeys(words)
        corpus_words = sorted({word for bag in bags for word in bag} - first.keys())
        self.words = {word: number for number, word in enumerate([*first, *corpus_words])}
        counts = count_matrix(bags, self.words)
        frequencies = np.bincount(counts.indices, minlength=len(self.words))
        rarity = np.log(1 + (len(bags) - frequencies + 0.5) / (frequencies + 0.5))
        self.bounds: Floats = (rarity * (settings.saturation + 1)).astype(np.float32)
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        relative = np.repeat(lengths / max(float(lengths.mean()), 1.0), np.diff(counts.indptr))
        damping = settings.saturation * (1 - settings.length_penalty + settings.length_penalty * relative)
        data = self.bounds[counts.indices] * counts.data / (counts.data + damping)
        self.weights = sp.csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)

    def scores(self, queries: Sequence[str]) -> Floats:
        """Return the score of every function for every query, float32 (queries, functions)."""
        rows = count_matrix(map(subtokens, queries), self.words)
        scores: Floats = (rows @ self.weights.T).toarray()
        return scores
