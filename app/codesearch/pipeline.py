"""One training run, from source code to a registered model."""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

from codesearch import evaluation, lexical, promotion, towers
from codesearch.base import Base, base_model
from codesearch.corpus import Corpus, Function, read_corpus
from codesearch.evaluation import Interval, Ranks, reciprocal
from codesearch.index import write_index
from codesearch.model_card import Card
from codesearch.plots import loss_figure, quality_figure, rank_figure
from codesearch.promotion import Decision, HeldOut
from codesearch.searcher import Searcher
from codesearch.settings import Settings, TrainingError
from codesearch.split import Split, digests, split
from codesearch.towers import TwoTowers
from codesearch.tracking import code_digest, digest_of_files, log_corpus, log_model, register, temporary_directory

_logger = logging.getLogger("codesearch")

RATE = 0.1
EXAMPLE = ["read a csv file into rows"]
_LEXICAL_WEIGHTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_DEFAULT_LEXICAL_WEIGHT = 2.0
#: With fewer held-out functions a figure says nothing, so the run says that instead.
_MIN_TESTED = 10
_TEST_SPLIT_FILE = "test_split.json.gz"
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]),
    outputs=Schema(
        [
            ColSpec(
                Array(
                    Object(
                        [
                            Property("function", DataType.string),
                            Property("file", DataType.string),
                            Property("line", DataType.long),
                            Property("signature", DataType.string),
                            Property("score", DataType.double),
                        ]
                    )
                )
            )
        ]
    ),
    params=ParamSchema([ParamSpec("top_k", DataType.long, 5)]),
)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has made.

    Attributes:
        run_id: MLflow's run.
        version: registered version.
        promoted: whether it became the champion.
        reason: why, or why not.
        quality: the figures of each system.
    """

    run_id: str
    version: str
    promoted: bool
    reason: str
    quality: Mapping[str, Mapping[str, Interval]]


def run(settings: Settings) -> Result:
    """Train, evaluate, log and register one model.

    Raises:
        TrainingError: with a message for the operator; nothing has been registered then.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    for name in ("mlflow.utils.environment", "mlflow.utils.requirements_utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.ERROR)  # advice for the author of a model, not for an operator
    context = multiprocessing.get_context("forkserver")
    try:
        mlflow.set_tracking_uri(settings.tracking_uri)
        mlflow.set_experiment(settings.experiment_name)
        with ProcessPoolExecutor(_usable_cores(), context) as executor:
            return _run(settings, executor)
    except MlflowException as error:
        raise TrainingError(f"MLflow at {settings.tracking_uri}: {_first_line(error)}") from error
    except BrokenProcessPool as error:
        raise TrainingError("a process that reads the corpus was killed: is there enough memory?") from error
    except OSError as error:
        raise TrainingError(_first_line(error)) from error


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _run(settings: Settings, executor: Executor) -> Result:
    start = time.monotonic()
    _logger.info("reading %s in %s", settings.corpus_name, settings.corpus_root)
    corpus = read_corpus(settings.corpus_name, settings.corpus_root, executor)
    _check(corpus, settings.corpus_root)
    tags = {"corpus": corpus.name, "code_digest": code_digest()}
    with mlflow.start_run(run_name="training", tags=tags, log_system_metrics=True) as parent:
        mlflow.log_params(
            {"corpus": corpus.name, "seed": settings.seed, "lexical_k1": lexical.WEIGHTED.saturation,
             "lexical_b": lexical.WEIGHTED.length_penalty, "dimensions": towers.DIMENSIONS}
        )  # fmt: skip
        log_corpus(corpus, settings.corpus_root, "training")
        base = base_model(settings, executor)
        mlflow.log_params({"base_model": base.name, "base_version": base.version})
        mlflow.set_tag("base_reused", str(base.reused).lower())
        parts = split(corpus.functions, base.learned)
        train = [corpus.functions[position] for position in parts.train]
        if len(train) < 2:
            raise TrainingError(
                f"nothing to train on: {settings.corpus_root} has fewer than two distinct documented functions"
            )
        tuned = _fine_tune(settings, train, base.towers)
        with temporary_directory() as directory:
            result = _evaluate_and_register(settings, corpus, parts, base, tuned, directory, parent.info.run_id)
        mlflow.log_metrics({"training_seconds": time.monotonic() - start, "peak_memory_mib": _peak_memory_mib()})
    _logger.info("done: %s version %s", settings.model_name, result.version)
    return result


def _check(corpus: Corpus, root: Path) -> None:
    _logger.info(
        "%s: %d documented functions in %d files, %d files skipped",
        corpus.name, len(corpus.functions), corpus.files, len(corpus.skipped),
    )  # fmt: skip
    for skipped in corpus.skipped[:5]:
        _logger.warning("skipped %s: %s", skipped.file, skipped.reason)
    if not corpus.files and not corpus.skipped:
        raise TrainingError(f"the corpus is empty: no Python files in {root}")
    if not corpus.files:
        raise TrainingError(f"none of the {len(corpus.skipped)} Python files in {root} can be read")
    if not corpus.functions:
        raise TrainingError(f"no documented function among the {corpus.undocumented} functions in {root}")


def _fine_tune(settings: Settings, train: list[Function], base: TwoTowers) -> TwoTowers:
    with mlflow.start_run(run_name="fine-tuning", nested=True):
        mlflow.log_params(
            {
                "epochs": settings.epochs,
                "learning_rate": RATE,
                "batch_size": towers.BATCH_SIZE,
                "softmax_scale": towers.SCALE,
            }
        )
        losses: list[float] = []

        def on_epoch(epoch: int, loss: float) -> None:
            losses.append(loss)
            mlflow.log_metric("loss", loss, step=epoch)
            _logger.info("fine-tuning, epoch %d of %d: loss %.3f", epoch, settings.epochs, loss)

        tuned = base.extended(train, settings.seed)
        tuned.train(train, settings.epochs, RATE, np.random.default_rng(settings.seed), on_epoch)
        mlflow.log_figure(loss_figure("Fine-tuning", losses), "loss.png")
    return tuned


def _evaluate_and_register(
    settings: Settings,
    corpus: Corpus,
    parts: Split,
    base: Base,
    tuned: TwoTowers,
    directory: Path,
    run_id: str,
) -> Result:
    functions = corpus.functions
    index = directory / "index"
    index.mkdir()
    _logger.info("evaluating on %d held-out functions among %d", len(parts.test), len(functions))
    weight = _choose_lexical_weight(functions, parts.validation, tuned, directory)
    write_index(index, functions, tuned, weight)
    searcher = Searcher(index)
    mlflow.log_param("lexical_weight", weight)
    mlflow.log_metrics(
        {
            "train_functions": len(parts.train),
            "validation_functions": len(parts.validation),
            "test_functions": len(parts.test),
        }
    )
    queries = [functions[position].query for position in parts.test]
    quality: dict[str, dict[str, Interval]] = {}
    found = np.zeros(0)
    if len(parts.test) >= _MIN_TESTED:
        systems = {
            "bm25": lexical.Bm25(functions, lexical.BASELINE).scores,
            "bm25_weighted": lexical.Bm25(functions, lexical.WEIGHTED).scores,
            "base": base.towers.scorer(functions),
            "fine_tuned": tuned.scorer(functions),
            "hybrid": searcher.scores,
        }
        ranks = {name: evaluation.ranks(scorer, queries, parts.test) for name, scorer in systems.items()}
        found = ranks["hybrid"]
        quality = {name: evaluation.quality(of_system) for name, of_system in ranks.items()}
        ratio = _log_quality(ranks, quality)
        card = Card(settings.model_name, corpus, parts, base.summary, quality, ratio, found, ranks["bm25"], searcher)
        mlflow.log_text(card.markdown(), "model_card.md")
    else:
        _logger.warning("only %d functions could be held out: the quality of this model is not known", len(parts.test))
    HeldOut(functions, parts.test, found.tolist()).save(directory / _TEST_SPLIT_FILE)
    mlflow.log_artifact(str(directory / _TEST_SPLIT_FILE), "evaluation")
    model_digest = digest_of_files(list(index.iterdir()))
    uri = log_model(
        "pyfunc_model.py",
        {"index": str(index)},
        _SIGNATURE,
        EXAMPLE,
        {
            "drift_profile": drift_profile(searcher, queries or [f.query for f in functions]),
            "example_predictions": searcher.search(EXAMPLE),
        },
    )
    learned = base.learned | digests([functions[position] for position in (*parts.train, *parts.validation)])
    decision = _decide(settings.model_name, tuned, weight, learned, directory)
    if decision.promote and not settings.may_promote:
        reason = f"{decision.reason}; a releaser may move the alias champion to it, a training run may not"
        decision = Decision(False, reason)
    figures = {f"test_{name}_mrr": f"{figures['mrr'].value:.4f}" for name, figures in quality.items()}
    tags = {"promotion": decision.reason, "model_digest": model_digest, "corpus_digest": corpus.digest, **figures}
    mlflow.set_tags({"model_digest": model_digest, "promotion": decision.reason})
    promoted = [settings.promotion_alias] if decision.promote else []
    version = register(uri, settings.model_name, tags, ["challenger", *promoted])
    _logger.info(
        "registered %s version %s as challenger%s: %s",
        settings.model_name, version.version, "".join(f" and {alias}" for alias in promoted), decision.reason,
    )  # fmt: skip
    return Result(run_id, str(version.version), decision.promote, decision.reason, quality)


def _choose_lexical_weight(
    functions: tuple[Function, ...], validation: list[int], tuned: TwoTowers, directory: Path
) -> float:
    if len(validation) < _MIN_TESTED:
        return _DEFAULT_LEXICAL_WEIGHT
    path = directory / "validation"
    path.mkdir()
    write_index(path, functions, tuned, 0)
    searcher = Searcher(path)
    queries = [functions[position].query for position in validation]

    def mrr(weight: float) -> float:
        searcher.lexical_weight = weight
        return float(reciprocal(evaluation.ranks(searcher.scores, queries, validation)).mean())

    best = max(_LEXICAL_WEIGHTS, key=mrr)
    shutil.rmtree(path)
    return best


def _log_quality(ranks: Mapping[str, Ranks], quality: Mapping[str, Mapping[str, Interval]]) -> Interval:
    table: dict[str, list[Any]] = {"system": [], "measure": [], "value": [], "low": [], "high": []}
    for name, figures in quality.items():
        for measure, interval in figures.items():
            key = f"test_{name}_{measure}"
            mlflow.log_metrics({key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high})
            for column, value in zip(table, (name, measure, interval.value, interval.low, interval.high), strict=True):
                table[column].append(value)
        _logger.info("%-14s MRR %s, recall@10 %s", name, figures["mrr"], figures["recall_at_10"])
    mlflow.log_table(table, "evaluation/quality.json")
    ratios = {
        name: evaluation.ratio_interval(reciprocal(ranks[name]), reciprocal(ranks["bm25"]))
        for name in ("fine_tuned", "hybrid")
    }
    for name, ratio in ratios.items():
        key = f"test_{name}_mrr_over_bm25"
        mlflow.log_metrics({key: ratio.value, f"{key}_low": ratio.low, f"{key}_high": ratio.high})
        _logger.info("%s MRR over BM25's: %s", name, ratio)
    mlflow.log_figure(
        rank_figure({name: ranks[name] for name in ("bm25", "fine_tuned", "hybrid")}), "evaluation/ranks.png"
    )
    mlflow.log_figure(quality_figure(quality), "evaluation/quality.png")
    return ratios["hybrid"]


def drift_profile(searcher: Searcher, queries: list[str]) -> dict[str, dict[str, list[float]]]:
    """Return how inputs and outputs are distributed: for each feature the upper edges of its bins and their shares.

    The queries are held-out ones: on those it was trained on, a model looks surer than it is.
    """
    answers = searcher.search(queries, 1)
    values = {
        "text_length": [float(len(query)) for query in queries],
        "unknown_token_rate": [searcher.unknown_rate(query) for query in queries],
        "top_score": [float(answer[0]["score"]) for answer in answers if answer],
    }
    return {feature: _bins(np.array(seen)) for feature, seen in values.items() if seen}


def _bins(values: Ranks) -> dict[str, list[float]]:
    # Equal shares make any shift visible; equal quantiles (a rate that is mostly 0) fall into one bin.
    edges = np.unique(np.round(np.quantile(values, np.arange(0.1, 1, 0.1)), 4))
    counts = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    return {"edges": edges.tolist(), "expected": (counts / len(values)).tolist()}


def _decide(name: str, tuned: TwoTowers, weight: float, learned: frozenset[int], directory: Path) -> Decision:
    client = MlflowClient()
    try:
        champion = client.get_model_version_by_alias(name, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return Decision(True, "there was no champion")
        raise
    label = f"champion version {champion.version}"
    try:
        path = mlflow.artifacts.download_artifacts(
            run_id=champion.run_id, artifact_path=f"evaluation/{_TEST_SPLIT_FILE}", dst_path=str(directory)
        )
        split_of_champion = HeldOut.load(Path(path))
    except (MlflowException, OSError, ValueError) as error:
        return Decision(False, f"{label} keeps no test split that can be read: {_first_line(error)}")
    return promotion.compare(label, split_of_champion, tuned, weight, learned)


def _peak_memory_mib() -> float:
    """Return the most that this process held at once, in MiB; the processes that read source code hold less."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
