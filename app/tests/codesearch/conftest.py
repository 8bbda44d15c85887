from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import mlflow
import pytest
from codesearch.corpus import Corpus, Function, read_corpus

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns of its own type hints as it is imported; in a test that is an error
    import mlflow.pyfunc.scoring_server

# What the code says, and what its documentation says instead: there is something to learn.
VERBS = {
    "read": "Load", "write": "Store", "parse": "Interpret", "count": "Tell how many there are of",
    "remove": "Delete", "sort": "Put in order", "copy": "Duplicate", "find": "Look up", "join": "Concatenate",
    "split": "Cut into pieces", "check": "Verify", "send": "Transmit",
}  # fmt: skip
NOUNS = {
    "csv": "tables of comma separated values", "url": "web addresses", "socket": "network connections",
    "directory": "folders", "header": "leading lines of a message", "token": "words of a source text",
    "thread": "lines of execution", "archive": "compressed collections", "date": "days of the calendar",
    "password": "secret phrases", "image": "pictures", "queue": "waiting jobs",
    "user": "people with an account", "price": "amounts of money", "lock": "claims on a resource",
    "matrix": "tables of numbers", "route": "ways through a network", "event": "things that happened",
}  # fmt: skip


def write_corpus(root: Path, spare: str = "") -> Path:
    """Write 216 documented functions, a few undocumented ones among them."""
    for noun, nouns in NOUNS.items():
        lines = ['"""A module."""', "def helper(value):", "    return value", ""]
        for verb, verbs in VERBS.items():
            lines += [
                f"def {verb}_{noun}({noun}, options=None):",
                f'    """{verbs} {nouns}{spare}.',
                "",
                '    More about it."""',
                f"    result = {noun}.{verb}(options, {len(verb) * len(noun)})",
                f"    return {verb}_result(result, '{noun} {verb}{spare}')",
                "",
            ]
        (root / f"{noun}s.py").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="session")
def executor() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, get_context("forkserver")) as pool:
        yield pool


@pytest.fixture(scope="session")
def corpus_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def base_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("base"), spare=" for the base")


@pytest.fixture(scope="session")
def corpus(corpus_root: Path, executor: Executor) -> Corpus:
    return read_corpus("example", corpus_root, executor)


@pytest.fixture(scope="session")
def functions(corpus: Corpus) -> list[Function]:
    return list(corpus.functions)


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real store, with the two experiments that the tests use."""
    directory = tmp_path_factory.mktemp("mlflow")
    former = mlflow.get_tracking_uri()
    uri = f"sqlite:///{directory}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    for name in ("experiment", "our-experiment"):
        mlflow.create_experiment(name, artifact_location=str(directory / name))
    yield uri
    mlflow.set_tracking_uri(former)


@pytest.fixture(autouse=True)
def _quiet_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MODEL_NAME", "EXPERIMENT_NAME", "TRAINING_CORPUS", "TRAINING_BASE_CORPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2])]))
