"""Whether a new model becomes the champion, decided on the champion's own test functions."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from codesearch.corpus import Function
from codesearch.evaluation import Interval, Ranks, mean_interval, ranks, reciprocal
from codesearch.index import write_index
from codesearch.searcher import Searcher
from codesearch.towers import TwoTowers

#: With fewer questions than this the interval itself is not to be trusted.
_MIN_QUESTIONS = 30


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a model was tested on, and how it did: kept with its run, so that its successors can be asked the same.

    Attributes:
        functions: the whole corpus.
        test: positions of the tested functions.
        ranks: the model's rank of each.
    """

    functions: Sequence[Function]
    test: Sequence[int]
    ranks: Sequence[float]

    def save(self, path: Path) -> None:
        """Write to a compressed file; the same split gives the same bytes."""
        content = {
            "functions": [astuple(function) for function in self.functions],
            "test": list(self.test),
            "ranks": list(self.ranks),
        }
        path.write_bytes(gzip.compress(json.dumps(content).encode("ascii"), mtime=0))

    @classmethod
    def load(cls, path: Path) -> HeldOut:
        """Read what :meth:`save` wrote."""
        content = json.loads(gzip.decompress(path.read_bytes()))
        return cls([Function(*fields) for fields in content["functions"]], content["test"], content["ranks"])


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether to promote, and why."""

    promote: bool
    reason: str


def compare(
    champion: str, split: HeldOut, towers: TwoTowers, lexical_weight: float, learned: frozenset[int]
) -> Decision:
    """Ask a new model what its champion was tested on.

    Args:
        champion: what to call the champion in the reason.
        split: what the champion was tested on.
        towers: the new model.
        lexical_weight: the new model's.
        learned: text digests of all that the new model learned from; such questions are left out.
    """
    fair = [number for number, i in enumerate(split.test) if learned.isdisjoint(split.functions[i].digests)]
    if len(fair) < _MIN_QUESTIONS:
        return Decision(False, f"only {len(fair)} of {champion}'s test functions are new to this model: no comparison")
    test = [split.test[number] for number in fair]
    with tempfile.TemporaryDirectory() as directory:
        write_index(Path(directory), split.functions, towers, lexical_weight)
        found = ranks(Searcher(directory).scores, [split.functions[i].query for i in test], test)
    return _decide(champion, reciprocal(np.array(split.ranks)[fair]), reciprocal(found))


def _decide(champion: str, theirs: Ranks, ours: Ranks) -> Decision:
    difference: Interval = mean_interval(ours - theirs)
    figures = (
        f"MRR {ours.mean():.4f} against {theirs.mean():.4f} on {champion}'s {len(ours)} test functions, "
        f"difference {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    )
    if difference.low > 0:
        return Decision(True, f"beats {champion}: {figures}")
    return Decision(False, f"does not beat {champion} by more than noise: {figures}")
