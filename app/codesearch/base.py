"""The base model: pre-trained once for the same inputs, then found in the registry."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema

from codesearch import towers as towers_module
from codesearch.corpus import corpus_digest, read_corpus
from codesearch.plots import loss_figure
from codesearch.settings import Settings, TrainingError
from codesearch.split import digests, trainable
from codesearch.towers import TwoTowers
from codesearch.tracking import code_digest, log_corpus, log_model, register, temporary_directory

_logger = logging.getLogger("codesearch")

RATE = 0.1
_INPUTS_TAG = "inputs_digest"
_SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.string)]), outputs=Schema([ColSpec(Array(DataType.double))])
)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model.

    Attributes:
        name: registered name.
        version: registered version.
        reused: whether an earlier run trained it.
        towers: the model.
        learned: text digests of all functions of its corpus.
        summary: one sentence for the model card.
    """

    name: str
    version: str
    reused: bool
    towers: TwoTowers
    learned: frozenset[int]
    summary: str


def base_model(settings: Settings, executor: Executor) -> Base:
    """Return the registered base model for these settings; train and register it when there is none."""
    _logger.info("looking at %s", settings.base_corpus_name)
    inputs = inputs_digest(settings)
    return _registered(settings, inputs) or _trained(settings, inputs, executor)


def inputs_digest(settings: Settings) -> str:
    """Return a digest of all that a base model follows from: corpus, settings, code and versions."""
    inputs = [
        corpus_digest(settings.base_corpus_root),
        settings.seed,
        settings.pretraining_epochs,
        code_digest("searcher", "corpus", "split", "towers", "base", "base_pyfunc_model"),
        list(sys.version_info[:2]),
        np.__version__,
    ]
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


def _name(settings: Settings) -> str:
    return f"{settings.model_name}_base"


def _registered(settings: Settings, inputs: str) -> Base | None:
    name = _name(settings)
    versions = MlflowClient().search_model_versions(f"name = '{name}' and tags.{_INPUTS_TAG} = '{inputs}'")
    for version in sorted(versions, key=lambda version: int(version.version), reverse=True):
        try:
            with temporary_directory() as directory:
                path = Path(
                    mlflow.artifacts.download_artifacts(f"models:/{name}/{version.version}", dst_path=str(directory))
                )
                path /= "artifacts/towers"
                towers = TwoTowers.load(path)
                learned = frozenset(np.load(path / "learned.npy").tolist())
                summary = (path / "summary.txt").read_text(encoding="utf-8")
        except (MlflowException, OSError, ValueError) as error:
            _logger.warning("%s version %s cannot be read, and is trained anew: %s", name, version.version, error)
            continue
        _logger.info("reusing %s version %s: the same inputs", name, version.version)
        return Base(name, str(version.version), True, towers, learned, summary)
    return None


def _trained(settings: Settings, inputs: str, executor: Executor) -> Base:
    corpus = read_corpus(settings.base_corpus_name, settings.base_corpus_root, executor)
    functions = [corpus.functions[i] for i in trainable(corpus.functions, range(len(corpus.functions)))]
    _logger.info(
        "%s: %d documented functions in %d files, %d files skipped",
        corpus.name, len(functions), corpus.files, len(corpus.skipped),
    )  # fmt: skip
    if len(functions) < 2:
        raise TrainingError(f"nothing to pre-train on: no documented functions in {settings.base_corpus_root}")
    with mlflow.start_run(run_name="pretraining", nested=True), temporary_directory() as directory:
        mlflow.log_params(
            {
                "seed": settings.seed,
                "epochs": settings.pretraining_epochs,
                "learning_rate": RATE,
                "dimensions": towers_module.DIMENSIONS,
                "batch_size": towers_module.BATCH_SIZE,
                "softmax_scale": towers_module.SCALE,
            }
        )
        log_corpus(corpus, settings.base_corpus_root, "pretraining")
        losses: list[float] = []

        def on_epoch(epoch: int, loss: float) -> None:
            losses.append(loss)
            mlflow.log_metric("loss", loss, step=epoch)
            _logger.info("pre-training, epoch %d of %d: loss %.3f", epoch, settings.pretraining_epochs, loss)

        towers = TwoTowers.empty().extended(functions, settings.seed)
        towers.train(functions, settings.pretraining_epochs, RATE, np.random.default_rng(settings.seed), on_epoch)
        mlflow.log_figure(loss_figure("Pre-training", losses), "loss.png")
        learned = frozenset(digests(corpus.functions))
        summary = (
            f"Pre-trained on {len(functions)} documented functions of *{corpus.name}* "
            f"(digest `{corpus.digest[:16]}`, {corpus.files} files, {len(corpus.skipped)} skipped)."
        )
        path = directory / "towers"
        path.mkdir()
        towers.save(path)
        np.save(path / "learned.npy", np.array(sorted(learned), np.uint64))
        (path / "summary.txt").write_text(summary, encoding="utf-8")
        example = ["read a csv file into rows"]
        uri = log_model("base_pyfunc_model.py", {"towers": str(path)}, _SIGNATURE, example)
        version = register(uri, _name(settings), {_INPUTS_TAG: inputs}, [])
    _logger.info("registered %s version %s", version.name, version.version)
    return Base(_name(settings), str(version.version), False, towers, learned, summary)
