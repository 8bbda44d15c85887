"""Which functions a model learns from, is tuned on and is tested on, without a leak between them.

Where a function belongs follows from its own text alone, so that it stays there from run to run: no later model is
ever trained on a function that an earlier one is tested on, whatever its seed and however the corpus grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass

from codesearch.corpus import Function
from codesearch.searcher import subtokens

_BUCKETS = 100
_TEST_BUCKETS = 20
_VALIDATION_BUCKETS = 10
#: A shorter description ("See above.") names no function in particular.
_MIN_TRAINED_WORDS = 2
_MIN_TESTED_WORDS = 3


@dataclass(frozen=True, slots=True)
class Split:
    """Positions in the list of functions, each ascending.

    Attributes:
        train: functions to learn from, each text once.
        validation: functions that choose settings.
        test: functions that nothing else ever sees.
    """

    train: list[int]
    validation: list[int]
    test: list[int]


def trainable(functions: Sequence[Function], positions: Sequence[int]) -> list[int]:
    """Return the positions of functions with a usable description, without repeated pairs of description and body."""
    seen: set[tuple[int, int]] = set()
    kept = []
    for position in positions:
        function = functions[position]
        pair = function.query_digest, function.body_digest
        if pair not in seen and len(subtokens(function.query)) >= _MIN_TRAINED_WORDS:
            seen.add(pair)
            kept.append(position)
    return kept


def digests(functions: Sequence[Function]) -> set[int]:
    """Return every text digest of these functions."""
    return {digest for function in functions for digest in function.digests}


def split(functions: Sequence[Function], pretrained: Set[int]) -> Split:
    """Divide a corpus.

    A function whose description, docstring or body stands a second time in the corpus or in pre-training is never
    tested on or tuned on.

    Args:
        functions: the corpus.
        pretrained: text digests of all functions of pre-training.
    """
    times = Counter(digest for function in functions for digest in set(function.digests))
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for position, function in enumerate(functions):
        part = _part(function)
        unique = all(times[digest] == 1 and digest not in pretrained for digest in function.digests)
        if part == "train" or (unique and len(subtokens(function.query)) >= _MIN_TESTED_WORDS):
            parts[part].append(position)
    return Split(trainable(functions, parts["train"]), parts["validation"], parts["test"])


def _part(function: Function) -> str:
    bucket = function.docstring_digest % _BUCKETS
    if bucket < _TEST_BUCKETS:
        return "test"
    return "validation" if bucket < _TEST_BUCKETS + _VALIDATION_BUCKETS else "train"
