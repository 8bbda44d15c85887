"""The model card: what the model was trained on, how good it is, and what it does badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from codesearch.corpus import Corpus, Function
from codesearch.evaluation import Interval, Ranks, reciprocal
from codesearch.plots import LABELS
from codesearch.searcher import Searcher, subtokens
from codesearch.split import Split

_EXAMPLES = 5
_SHORT_QUERY = 6
_CELL_LENGTH = 90


@dataclass(frozen=True, slots=True)
class Card:
    """All that the card tells of.

    Attributes:
        model_name: registered name.
        corpus: what the model searches and was fine-tuned on.
        split: what of it was held out.
        base: one sentence on the base model.
        systems: the figures of each system.
        ratio: MRR of the model over BM25's.
        ranks: the model's rank of each test function.
        baseline_ranks: BM25's.
        searcher: the model.
    """

    model_name: str
    corpus: Corpus
    split: Split
    base: str
    systems: Mapping[str, Mapping[str, Interval]]
    ratio: Interval
    ranks: Ranks
    baseline_ranks: Ranks
    searcher: Searcher

    def markdown(self) -> str:
        """Return the card."""
        return "\n\n".join([self._what(), self._data(), self._quality(), self._weaknesses(), _LIMITS]) + "\n"

    def _what(self) -> str:
        return (
            f"# {self.model_name}\n\n"
            "Describe in English what you need; get the Python functions that do it, with file, line and signature.\n"
            "A two-tower embedding of subtokens, trained by contrast, plus a BM25 score that weighs names."
        )

    def _data(self) -> str:
        corpus, split = self.corpus, self.split
        return (
            "## What it was trained on\n\n"
            f"- {self.base}\n"
            f"- Fine-tuned on {len(split.train)} documented functions of *{corpus.name}* (digest "
            f"`{corpus.digest[:16]}`, {corpus.files} files, {len(corpus.skipped)} skipped).\n"
            f"- It finds all {len(corpus.functions)} documented functions of that corpus; {corpus.undocumented} "
            "without a docstring are not in it.\n"
            f"- Held out: {len(split.validation)} functions to choose the weight of the lexical half "
            f"({self.searcher.lexical_weight:g}), {len(split.test)} to test. None of them shares its docstring, its "
            "first paragraph or its body with anything the model has seen, or with each other."
        )

    def _quality(self) -> str:
        measures = list(next(iter(self.systems.values())))
        head = "| | " + " | ".join(measures) + " |\n|---" * 1 + "|---" * len(measures) + "|"
        rows = [
            f"| {LABELS[name]} | " + " | ".join(str(figures[measure]) for measure in measures) + " |"
            for name, figures in self.systems.items()
        ]
        return (
            "## How good it is\n\n"
            "The first paragraph of a docstring is the query; its function, without docstring, is sought among the "
            "whole corpus. 95 % bootstrap intervals.\n\n" + "\n".join([head, *rows]) + "\n\n"
            f"MRR over BM25's: **{self.ratio}**. BM25 uses Lucene's defaults (k1 = 1.2, b = 0.75) and the same "
            'subtokens; "names weighted" is the lexical half by itself.'
        )

    def _weaknesses(self) -> str:
        functions = [self.corpus.functions[position] for position in self.split.test]
        order = np.argsort(-self.ranks, kind="stable")
        worst = [int(number) for number in order[:_EXAMPLES]]
        lost = [int(n) for n in np.argsort(self.baseline_ranks - self.ranks, kind="stable") if self.ranks[n] > 10]
        short = np.array([len(subtokens(function.query)) < _SHORT_QUERY for function in functions])
        far, very_far = np.mean(self.ranks > 10), np.mean(self.ranks > 100)
        parts = [
            "## What it does badly",
            "",
            f"- Not among the first ten answers: {far:.0%} of the tested functions; the first hundred: {very_far:.0%}.",
        ]
        if short.any() and not short.all():
            parts.append(
                f"- Queries of fewer than {_SHORT_QUERY} words: MRR {reciprocal(self.ranks[short]).mean():.3f}; "
                f"longer ones: {reciprocal(self.ranks[~short]).mean():.3f}."
            )
        parts += ["", "Worst of all:", "", *self._examples(functions, worst)]
        if lost:
            parts += ["", "Where BM25 does much better:", "", *self._examples(functions, lost[:_EXAMPLES])]
        return "\n".join(parts)

    def _examples(self, functions: Sequence[Function], numbers: Sequence[int]) -> list[str]:
        lines = ["| query | sought | rank | BM25's | found first |", "|---|---|---|---|---|"]
        for number in numbers:
            function = functions[number]
            first = self.searcher.search([function.query], 1)[0]
            cells = [
                _cell(function.query),
                f"`{function.name}`",
                f"{self.ranks[number]:.0f}",
                f"{self.baseline_ranks[number]:.0f}",
                f"`{first[0]['function']}`" if first else "nothing",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return lines


def _cell(text: str) -> str:
    shortened = text if len(text) <= _CELL_LENGTH else text[: _CELL_LENGTH - 1] + "…"
    return shortened.replace("|", "\\|").replace("<", "&lt;")


_LIMITS = """## Limits

- It knows words, not what code does: a function whose names say nothing is not found, order and negation are ignored
  ("from a file to a list" is "from a list to a file").
- It knows English, and words that occur in the code it was trained on.
- The answers are as old as the corpus it was trained on: train again when the code has moved on."""
