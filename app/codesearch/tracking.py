"""What is the same for every model that a run logs and registers with MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, set_signature

from codesearch.corpus import Corpus

_logger = logging.getLogger("codesearch")

_PACKAGE = Path(__file__).parent
_DIGEST_LENGTH = 32


def digest_of_files(paths: Sequence[Path]) -> str:
    """Return a SHA-256, in hexadecimal, of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def code_digest(*modules: str) -> str:
    """Return the digest of modules of this package, of all of them without arguments."""
    return digest_of_files([_PACKAGE / f"{name}.py" for name in modules] or list(_PACKAGE.glob("*.py")))


def log_corpus(corpus: Corpus, root: Path, context: str) -> None:
    """Log a corpus as a dataset input of the current run, and the files that were skipped as an artifact."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MLflow registers the kind of source twice, and wonders which
        source = resolve_dataset_source(str(root))
    digest = corpus.digest[:_DIGEST_LENGTH]  # MLflow takes 36 characters at most
    dataset = MetaDataset(source, name=corpus.name, digest=digest)  # type: ignore[abstract]  # MLflow's own omission
    mlflow.log_input(dataset, context=context)
    prefix = context.replace("-", "_")
    mlflow.log_metrics(
        {
            f"{prefix}_files": corpus.files,
            f"{prefix}_functions": len(corpus.functions),
            f"{prefix}_undocumented_functions": corpus.undocumented,
            f"{prefix}_skipped_files": len(corpus.skipped),
        }
    )
    if corpus.skipped:
        lines = [f"{skipped.file}: {skipped.reason}" for skipped in corpus.skipped]
        mlflow.log_text("\n".join(lines) + "\n", f"{prefix}_skipped_files.txt")


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    # MLflow runs the model to check its example: what Python caches beside it has a time stamp, and would be logged.
    former, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = former


def log_model(
    code: str,
    artifacts: dict[str, str],
    signature: ModelSignature,
    example: list[str],
    metadata: dict[str, Any] | None = None,
) -> str:
    """Log a model as code to the current run.

    Args:
        code: file of this package that MLflow runs.
        artifacts: what it finds in its context, beside ``searcher``.
        signature: inputs, outputs and parameters.
        example: the input example.
        metadata: written into the MLmodel file.

    Returns:
        The model's URI.
    """
    with _no_bytecode():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(_PACKAGE / code),
            artifacts=artifacts | {"searcher": str(_PACKAGE / "searcher.py")},
            pip_requirements=["numpy>=2"],
            input_example=example,
            metadata=metadata,
        )
    # The type hint ``list[str]`` saves the model a data frame, but MLflow then infers a signature from it that knows
    # neither outputs nor params, and refuses all JSON shapes but one. The full signature is put in its place.
    set_signature(info.model_uri, signature)
    return str(info.model_uri)


def register(model_uri: str, name: str, tags: dict[str, str], aliases: Sequence[str]) -> ModelVersion:
    """Register a logged model with its aliases, or nothing at all.

    Raises:
        MlflowException: the server refused or went away; no version without its aliases is left behind, as far as the
            server can still be reached.
    """
    client = MlflowClient()
    version = mlflow.register_model(model_uri, name, tags=tags)
    try:
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version.version)
    except BaseException:
        _logger.warning("taking back %s version %s", name, version.version)
        with contextlib.suppress(MlflowException):
            client.delete_model_version(name, version.version)
        raise
    return version


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """Give a directory for the block's time."""
    with tempfile.TemporaryDirectory(prefix="codesearch-") as directory:
        yield Path(directory)
