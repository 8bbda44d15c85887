"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codesearch.evaluation import Interval, Ranks

_COLOURS = {
    "bm25": "#9aa0a6",
    "bm25_weighted": "#5f6368",
    "base": "#a8c7fa",
    "fine_tuned": "#4285f4",
    "hybrid": "#174ea6",
}
LABELS = {
    "bm25": "BM25",
    "bm25_weighted": "BM25, names weighted",
    "base": "base model",
    "fine_tuned": "fine-tuned",
    "hybrid": "fine-tuned + lexical",
}
_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 501)
_BANDS = ("1", "2", "3 to 5", "6 to 10", "11 to 20", "21 to 50", "51 to 100", "101 to 500", "over 500")


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e8eaed")


def loss_figure(title: str, losses: Sequence[float]) -> Figure:
    """Plot the mean loss of each epoch."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    epochs = range(1, len(losses) + 1)
    axes.plot(epochs, losses, marker="o", color=_COLOURS["fine_tuned"])
    axes.set_ylim(0, max(losses) * 1.1 or 1)
    axes.set_xticks(list(epochs))
    axes.set(title=title, xlabel="epoch", ylabel="mean loss (nats)")
    _plain(axes)
    return figure


def rank_figure(systems: Mapping[str, Ranks]) -> Figure:
    """Plot how many of the test functions stand at which rank."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(systems)
    for number, (name, found) in enumerate(systems.items()):
        bands = np.digitize(found, _EDGES) - 1
        shares = np.bincount(bands, minlength=len(_BANDS)) / len(found)
        places = np.arange(len(_BANDS)) + (number - (len(systems) - 1) / 2) * width
        axes.bar(places, shares, width, label=LABELS[name], color=_COLOURS[name])
    axes.set_xticks(range(len(_BANDS)), _BANDS)
    axes.set(title="Rank of the right function", xlabel="rank", ylabel="share of the test functions")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def quality_figure(systems: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Plot each measure of each system with its interval."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    measures = list(next(iter(systems.values())))
    width = 0.8 / len(systems)
    for number, (name, figures) in enumerate(systems.items()):
        values = np.array([figures[measure].value for measure in measures])
        errors = np.abs(np.array([[figures[m].low, figures[m].high] for m in measures]).T - values)
        places = np.arange(len(measures)) + (number - (len(systems) - 1) / 2) * width
        axes.bar(
            places, values, width, yerr=errors, capsize=2, label=LABELS[name], color=_COLOURS[name], ecolor="#202124"
        )
    axes.set_xticks(range(len(measures)), [m.replace("recall_at_", "recall@").replace("mrr", "MRR") for m in measures])
    axes.set(title="Quality on held-out functions, with 95 % intervals", ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    _plain(axes)
    return figure
