from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from codesearch.corpus import Corpus, Function, read_corpus

WriteCorpus = Callable[[Path], Path]

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
}  # fmt: skip


def write_corpus(root: Path, spare: str = "") -> Path:
    """Write 144 documented functions, a few undocumented ones among them."""
    for noun, nouns in NOUNS.items():
        lines = ['"""A module."""', "def helper(value):", "    return value", ""]
        for verb, verbs in VERBS.items():
            lines += [
                f"def {verb}_{noun}({noun}, options=None):",
                f'    """{verbs} {nouns}{spare}.',
                "",
                '    More about it."""',
                f"    result = {noun}.{verb}(options, {len(verb) * len(noun)})",
                f"    return {verb}_result(result, '{noun} {verb}')",
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


@pytest.fixture(autouse=True)
def _quiet_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MODEL_NAME", "EXPERIMENT_NAME", "TRAINING_CORPUS", "TRAINING_BASE_CORPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2])]))
