"""Documented Python functions read from a directory of source code, in parallel; nothing is executed."""

from __future__ import annotations

import ast
import gc
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from codesearch.searcher import subtokens

#: Directories that hold other people's code, generated files or tests: none of it is what a search should find.
SKIPPED_DIRECTORIES = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "node_modules", "venv", "test", "tests", "testing", "idle_test"}
)
#: A larger file is generated data, and its syntax tree would cost a hundred times its size in memory.
MAX_FILE_BYTES = 1_000_000
_MAX_SIGNATURE_LENGTH = 200
_MAX_QUERY_WORDS = 60
_MAX_STRING_LENGTH = 200
_CHUNK_FILES = 16
_HOLDERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.Try, ast.With)

_FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Function:
    """One documented function or method.

    Attributes:
        name: name qualified by its classes, e.g. ``DictReader.fieldnames``.
        file: path relative to the corpus root, with forward slashes.
        line: line of ``def``, from 1.
        signature: ``name(parameters) -> annotation``, shortened when very long.
        query: first paragraph of the docstring, on one line.
        name_words: subtokens of the name, separated by spaces.
        place_words: subtokens of the modules and classes that hold it.
        body_words: subtokens of parameters, and of identifiers and strings in the body, in source order.
        docstring_digest: of the docstring's words, 64 bits.
        query_digest: of the query's words, 64 bits.
        body_digest: of the body's syntax without docstring, comments and layout, 64 bits.
    """

    name: str
    file: str
    line: int
    signature: str
    query: str
    name_words: str
    place_words: str
    body_words: str
    docstring_digest: int
    query_digest: int
    body_digest: int

    @property
    def digests(self) -> tuple[int, int, int]:
        """What must not be shared between a tested function and training."""
        return self.docstring_digest, self.query_digest, self.body_digest


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that could not be read as Python, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documented functions under one directory.

    Attributes:
        name: what people call this corpus.
        digest: SHA-256 over the relative paths and contents of its files, in hexadecimal.
        files: how many files were read, the skipped ones not counted.
        undocumented: how many functions were left out for want of a docstring.
        functions: in the order of files and lines.
        skipped: files left out.
    """

    name: str
    digest: str
    files: int
    undocumented: int
    functions: tuple[Function, ...]
    skipped: tuple[Skipped, ...]


def python_files(root: Path) -> list[Path]:
    """Return the ``*.py`` files under ``root`` that belong to a corpus, sorted."""
    found: list[Path] = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED_DIRECTORIES and not name.startswith(".")]
        found += [Path(directory, file) for file in files if file.endswith(".py")]
    return sorted(found)


def corpus_digest(root: Path) -> str:
    """Return a SHA-256, in hexadecimal, of the paths and contents of a corpus's files; unreadable ones are empty."""
    digest = hashlib.sha256()
    for path in python_files(root):
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode(errors="surrogateescape"))
        digest.update(content)
    return digest.hexdigest()


def read_corpus(name: str, root: Path, executor: Executor) -> Corpus:
    """Read all documented functions under ``root``.

    Args:
        name: what people call this corpus.
        root: directory that holds the source code.
        executor: pool of processes that does the reading; the result is the same for any number of workers.
    """
    paths = python_files(root)
    chunks = [paths[start : start + _CHUNK_FILES] for start in range(0, len(paths), _CHUNK_FILES)]
    functions: list[Function] = []
    skipped: list[Skipped] = []
    undocumented = 0
    for found, failed, left_out in executor.map(_read_chunk, [root] * len(chunks), chunks):
        functions += found
        skipped += failed
        undocumented += left_out
    return Corpus(name, corpus_digest(root), len(paths) - len(skipped), undocumented, tuple(functions), tuple(skipped))


def _read_chunk(root: Path, paths: list[Path]) -> tuple[list[Function], list[Skipped], int]:
    functions: list[Function] = []
    skipped: list[Skipped] = []
    undocumented = 0
    gc.disable()  # syntax trees hold no cycles; looking for some takes a third of the time
    try:
        for path in paths:
            file = path.relative_to(root).as_posix()
            try:
                tree = _parse(path)
            except _UnreadableError as error:
                skipped.append(Skipped(file, str(error)))
                continue
            module = [part for part in file.removesuffix(".py").split("/") if part != "__init__"]
            for node, classes in _function_nodes(tree):
                if docstring := ast.get_docstring(node, clean=False):
                    functions.append(_function(node, classes, docstring, file, module))
                else:
                    undocumented += 1
    finally:
        gc.enable()
    return functions, skipped, undocumented


class _UnreadableError(Exception):
    """Why a file was skipped."""


def _parse(path: Path) -> ast.Module:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _UnreadableError(error.strerror or type(error).__name__) from error
    if len(content) > MAX_FILE_BYTES:
        raise _UnreadableError(f"larger than {MAX_FILE_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the corpus's own invalid escapes are not ours to report
            return ast.parse(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _UnreadableError("not UTF-8") from error
    except (SyntaxError, ValueError) as error:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise _UnreadableError(f"not Python {version}: {error.args[0]}") from error
    except (RecursionError, MemoryError) as error:
        raise _UnreadableError("nested too deeply") from error


def _function_nodes(tree: ast.Module) -> Iterator[tuple[_FunctionNode, tuple[str, ...]]]:
    """Yield the functions that other code can call: those of the module and its classes, not those inside functions."""
    stack: list[tuple[ast.AST, tuple[str, ...]]] = [(tree, ())]
    while stack:
        node, classes = stack.pop()
        if isinstance(node, _FunctionNode):
            yield node, classes
            continue
        inner = (*classes, node.name) if isinstance(node, ast.ClassDef) else classes
        stack.extend(
            (child, inner) for child in reversed(list(ast.iter_child_nodes(node))) if isinstance(child, _HOLDERS)
        )


def _function(node: _FunctionNode, classes: tuple[str, ...], docstring: str, file: str, module: list[str]) -> Function:
    query = " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split()[:_MAX_QUERY_WORDS])
    parameters, _ = _scan([node.args, *([node.returns] if node.returns else [])])
    identifiers, syntax = _scan(node.body[1:])
    return Function(
        name=".".join((*classes, node.name)),
        file=_printable(file),
        line=node.lineno,
        signature=_printable(_signature(node)),
        query=_printable(query),
        name_words=" ".join(subtokens(node.name)),
        place_words=" ".join(subtokens(" ".join((*module, *classes)))),
        body_words=" ".join(subtokens(" ".join(parameters + identifiers))),
        docstring_digest=_digest(" ".join(subtokens(docstring))),
        query_digest=_digest(" ".join(subtokens(query))),
        body_digest=_digest(" ".join(syntax)),
    )


def _signature(node: _FunctionNode) -> str:
    try:
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        signature = f"{node.name}({ast.unparse(node.args)}){returns}"
    except (ValueError, RecursionError):  # a default that Python reads but does not write, such as a huge integer
        return f"{node.name}(…)"
    return signature if len(signature) <= _MAX_SIGNATURE_LENGTH else signature[: _MAX_SIGNATURE_LENGTH - 1] + "…"


def _scan(nodes: Iterable[ast.AST]) -> tuple[list[str], list[str]]:
    """Return the identifiers and strings under ``nodes``, and the whole syntax, both in source order."""
    words: list[str] = []
    syntax: list[str] = []
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        syntax.append(type(node).__name__)
        children: list[ast.AST] = []
        for field in node._fields:
            value = getattr(node, field, None)
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, ast.AST):
                    if not isinstance(item, ast.expr_context):
                        children.append(item)
                elif isinstance(item, str):
                    words.append(item[:_MAX_STRING_LENGTH])
                    syntax.append(item)
                elif isinstance(item, int):
                    syntax.append(f"{item:x}")  # Python refuses to write a huge integer in decimal
                elif item is not None:
                    syntax.append(repr(item))
        stack.extend(reversed(children))
    return words, syntax


def _printable(text: str) -> str:
    """Return ``text`` without the lone surrogates that a string escape or a file name can hold: JSON has none."""
    return text.encode(errors="replace").decode()


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big")
