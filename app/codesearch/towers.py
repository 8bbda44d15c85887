"""The two-tower model: English and code, each a weighted bag of subtokens, in one space of vectors.

A text's vector is the weighted sum of its subtokens' vectors, scaled to length 1. Both towers start from one random
vector per subtoken, so that before any training "read" in English already lies near ``read`` in code; contrastive
training then moves what the code does next to what people call it.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from codesearch.corpus import Function
from codesearch.searcher import subtokens

DIMENSIONS = 128
#: A subtoken seen once teaches nothing about any other text.
MIN_FUNCTIONS = 2
BATCH_SIZE = 512
#: Inverse temperature of the softmax; on standard-library functions 10 to 20 differed by less than noise.
SCALE = 12.0

Floats = NDArray[np.float32]
Bag = Sequence[str]


def query_bag(query: str) -> Bag:
    """Return the features of a text in English."""
    return subtokens(query)


def function_bag(function: Function) -> Bag:
    """Return the features of a function's code: where a word stands, in name, place or body, is part of the feature."""
    names = ["name:" + word for word in function.name_words.split()]
    places = ["place:" + word for word in function.place_words.split()]
    return names + places + function.body_words.split()


def _first_vector(feature: str, seed: int) -> Floats:
    word = feature.rpartition(":")[2]
    generator = np.random.default_rng([seed, zlib.crc32(word.encode(errors="surrogatepass"))])
    return generator.standard_normal(DIMENSIONS, np.float32) / np.float32(np.sqrt(DIMENSIONS))


@dataclass(slots=True)
class Tower:
    """The vectors of one tower.

    Attributes:
        words: row of each feature.
        weights: inverse document frequency of each feature, float32 (features,).
        vectors: float32 (features, DIMENSIONS).
        squares: what Adagrad has seen of each vector's gradients, float32 (features,).
    """

    words: dict[str, int]
    weights: Floats
    vectors: Floats
    squares: Floats

    @classmethod
    def empty(cls) -> Tower:
        """Return a tower that knows no feature."""
        nothing = np.zeros(0, np.float32)
        return cls({}, nothing, np.zeros((0, DIMENSIONS), np.float32), nothing)

    def extended(self, bags: Sequence[Bag], seed: int) -> Tower:
        """Return a copy that knows the features of these bags too, with fresh counts of past gradients."""
        frequencies = Counter(feature for bag in bags for feature in set(bag))
        new = sorted(f for f, count in frequencies.items() if count >= MIN_FUNCTIONS and f not in self.words)
        words = self.words | {feature: len(self.words) + number for number, feature in enumerate(new)}
        weights = np.array([np.log((len(bags) + 1) / frequencies[feature]) for feature in new], np.float32)
        vectors = [_first_vector(feature, seed) for feature in new]
        return Tower(
            words,
            np.concatenate([self.weights, weights]),
            np.concatenate([self.vectors, np.reshape(vectors, (-1, DIMENSIONS)).astype(np.float32)]),
            np.zeros(len(words), np.float32),
        )

    def matrix(self, bags: Iterable[Bag]) -> sp.csr_matrix:
        """Return bags as rows of weights: (1 + log count) times inverse document frequency, each row of length 1."""
        return unit_rows(weighted(count_matrix(bags, self.words), self.weights))

    def encode(self, matrix: sp.csr_matrix) -> tuple[Floats, Floats]:
        """Return vectors of length 1, float32 (rows, DIMENSIONS), and the lengths they had, float32 (rows, 1)."""
        sums = matrix @ self.vectors
        lengths = np.sqrt(np.einsum("ij,ij->i", sums, sums))[:, None] + np.float32(1e-6)
        return sums / lengths, lengths

    def descend(self, matrix: sp.csr_matrix, vectors: Floats, lengths: Floats, slope: Floats, rate: float) -> None:
        """Take one step of row-wise Adagrad against ``slope``, the loss's gradient by the encoded vectors."""
        inner = (slope - vectors * np.einsum("ij,ij->i", slope, vectors)[:, None]) / lengths
        rows, local = np.unique(matrix.indices, return_inverse=True)
        batch = sp.csr_matrix((matrix.data, local, matrix.indptr), shape=(matrix.shape[0], len(rows)))
        gradient = batch.T @ inner
        self.squares[rows] += np.einsum("ij,ij->i", gradient, gradient) / DIMENSIONS
        self.vectors[rows] -= (rate / np.sqrt(self.squares[rows] + 1e-10)).astype(np.float32)[:, None] * gradient


@dataclass(slots=True)
class TwoTowers:
    """The model: a tower for English and one for code."""

    query: Tower
    code: Tower

    @classmethod
    def empty(cls) -> TwoTowers:
        """Return a model that knows nothing."""
        return cls(Tower.empty(), Tower.empty())

    def extended(self, functions: Sequence[Function], seed: int) -> TwoTowers:
        """Return a copy that knows the words of these functions too."""
        return TwoTowers(
            self.query.extended([query_bag(function.query) for function in functions], seed),
            self.code.extended([function_bag(function) for function in functions], seed),
        )

    def encode_functions(self, functions: Iterable[Function]) -> Floats:
        """Return the functions' vectors, float32 (functions, DIMENSIONS), each of length 1."""
        return self.code.encode(self.code.matrix(map(function_bag, functions)))[0]

    def scorer(self, functions: Iterable[Function]) -> Callable[[list[str]], Floats]:
        """Return what gives the cosine of every function for some queries, float32 (queries, functions)."""
        codes = self.encode_functions(functions)

        def score(queries: list[str]) -> Floats:
            cosines: Floats = self.query.encode(self.query.matrix(map(query_bag, queries)))[0] @ codes.T
            return cosines

        return score

    def train(
        self,
        functions: Sequence[Function],
        epochs: int,
        rate: float,
        generator: np.random.Generator,
        on_epoch: Callable[[int, float], None],
    ) -> None:
        """Learn to tell each function's description from those of the others in its batch, and the reverse.

        Args:
            functions: at least two.
            epochs: how often to see each function.
            rate: first learning rate; it falls to zero in a straight line.
            generator: orders the functions.
            on_epoch: called with the epoch, from 1, and its mean loss.
        """
        queries = self.query.matrix(query_bag(function.query) for function in functions)
        codes = self.code.matrix(map(function_bag, functions))
        steps = epochs * len(list(_batches(np.arange(len(functions)))))
        step = 0
        for epoch in range(1, epochs + 1):
            losses = []
            for batch in _batches(generator.permutation(len(functions))):
                losses.append(self._step(queries[batch], codes[batch], rate * (1 - step / steps)))
                step += 1
            on_epoch(epoch, float(np.mean(losses)))

    def _step(self, query_rows: sp.csr_matrix, code_rows: sp.csr_matrix, rate: float) -> float:
        queries, query_lengths = self.query.encode(query_rows)
        codes, code_lengths = self.code.encode(code_rows)
        similarities = SCALE * (queries @ codes.T)
        by_query, by_code = _softmax(similarities), _softmax(similarities.T).T
        diagonal = np.arange(len(queries))
        slope: Floats = by_query + by_code
        slope[diagonal, diagonal] -= 2
        slope *= np.float32(SCALE / len(queries))
        self.query.descend(query_rows, queries, query_lengths, slope @ codes, rate)
        self.code.descend(code_rows, codes, code_lengths, slope.T @ queries, rate)
        return float(-np.log(by_query[diagonal, diagonal] + 1e-12).mean())

    def save(self, directory: Path) -> None:
        """Write the model; the same model gives the same bytes."""
        for name, tower in (("query", self.query), ("code", self.code)):
            (directory / f"{name}_words.json").write_text(json.dumps(list(tower.words)), encoding="ascii")
            np.save(directory / f"{name}_weights.npy", tower.weights)
            np.save(directory / f"{name}_vectors.npy", tower.vectors)

    @classmethod
    def load(cls, directory: Path) -> TwoTowers:
        """Read what :meth:`save` wrote."""

        def tower(name: str) -> Tower:
            words = json.loads((directory / f"{name}_words.json").read_text(encoding="ascii"))
            weights = np.load(directory / f"{name}_weights.npy")
            return Tower(
                {word: number for number, word in enumerate(words)},
                weights,
                np.load(directory / f"{name}_vectors.npy"),
                np.zeros_like(weights),
            )

        return cls(tower("query"), tower("code"))


def _batches(order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Cut an order into batches of nearly equal size: a last batch of few would compare with few."""
    yield from np.array_split(order, max(1, round(len(order) / BATCH_SIZE)))


def _softmax(scores: Floats) -> Floats:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
    return result


def count_matrix(bags: Iterable[Bag], words: dict[str, int]) -> sp.csr_matrix:
    """Return how often each known feature stands in each bag, float32 (bags, features), columns ascending in a row."""
    columns: list[int] = []
    counts: list[int] = []
    starts = [0]
    for bag in bags:
        row = Counter(words[feature] for feature in bag if feature in words)
        for column in sorted(row):
            columns.append(column)
            counts.append(row[column])
        starts.append(len(columns))
    arrays: Any = (np.array(counts, np.float32), np.array(columns, np.int32), np.array(starts, np.int64))
    return sp.csr_matrix(arrays, shape=(len(starts) - 1, len(words)))


def weighted(counts: sp.csr_matrix, weights: Floats) -> sp.csr_matrix:
    """Return (1 + log count) times the weight of the column."""
    data = (1 + np.log(counts.data)) * weights[counts.indices]
    return sp.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def unit_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return the matrix with every row that is not empty scaled to length 1."""
    sizes = np.diff(matrix.indptr)
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    data = matrix.data / np.repeat(np.where(lengths > 0, lengths, 1), sizes)
    return sp.csr_matrix((data.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
