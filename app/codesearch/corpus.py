"""Python functions read from a directory of source code, in parallel, with nothing executed."""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import sysconfig
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
MAX_FILE_BYTES = 1_000_000
MAX_SIGNATURE_LENGTH = 200
MAX_QUERY_WORDS = 60
MAX_STRING_LENGTH = 200
_HOLDERS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.Try, ast.With)
_CHUNK_FILES = 32


@dataclass(frozen=True, slots=True)
class Function:
    """One function or method of a corpus.

    Attributes:
        name: name qualified by its classes, e.g. ``DictReader.fieldnames``.
        file: path relative to the corpus root, with forward slashes.
        line: line of ``def``, from 1.
        signature: ``name(parameters) -> annotation``, shortened when very long.
        query: first paragraph of the docstring on one line, empty without one.
        name_words: subtokens of the name, separated by spaces.
        context_words: subtokens of the classes and the module that hold it.
        body_words: subtokens of parameters, identifiers and strings in the body, in source order.
        docstring_digest: digest of the docstring's words, 0 without one.
        body_digest: digest of the body's structure, whatever its comments and layout.
    """

    name: str
    file: str
    line: int
    signature: str
    query: str
    name_words: str
    context_words: str
    body_words: str
    docstring_digest: int
    body_digest: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that could not be read as Python, and why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """The functions under one root.

    Attributes:
        name: what people call this corpus.
        digest: SHA-256 over the relative paths and contents of its files, in hexadecimal.
        files: how many files were read, the skipped ones not counted.
        functions: sorted by file and line.
        skipped: files left out, with the reason.
    """

    name: str
    digest: str
    files: int
    functions: tuple[Function, ...]
    skipped: tuple[Skipped, ...]


def digest64(text: str) -> int:
    """Return the first 64 bits of the text's BLAKE2 digest, as an unsigned integer; 0 for no text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") if text else 0


def python_files(root: Path) -> list[Path]:
    """Return the ``*.py`` files under ``root`` that belong to a corpus, sorted."""
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [n for n in names if n not in SKIPPED_DIRECTORIES and not n.startswith(".")]
        found += [Path(directory, f) for f in files if f.endswith(".py")]
    return sorted(found)


def _query(docstring: str) -> str:
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    return " ".join(paragraph.split()[:MAX_QUERY_WORDS])


def _scan(nodes: Iterable[ast.AST]) -> tuple[list[str], list[str]]:
    """Return the identifiers and strings under ``nodes``, and the structure that a digest is made of."""
    words: list[str] = []
    structure: list[str] = []
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        structure.append(type(node).__name__)
        children: list[ast.AST] = []
        for field in node._fields:
            value = getattr(node, field, None)
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, ast.AST):
                    if not isinstance(item, ast.expr_context):
                        children.append(item)
                elif isinstance(item, str):
                    words.append(item[:MAX_STRING_LENGTH])
                    structure.append(item)
                elif isinstance(item, int):
                    structure.append(f"{item:x}")  # decimal digits of a huge integer would be refused
                elif item is not None:
                    structure.append(repr(item))
        stack.extend(reversed(children))
    return words, structure


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, classes: tuple[str, ...], file: str, module: list[str]
) -> Function:
    docstring = ast.get_docstring(node, clean=False) or ""
    body = node.body[1:] if docstring else node.body
    parameters, _ = _scan([node.args, *([node.returns] if node.returns else [])])
    words, structure = _scan(body)
    signature = f"{node.name}({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    if len(signature) > MAX_SIGNATURE_LENGTH:
        signature = signature[: MAX_SIGNATURE_LENGTH - 1] + "…"
    return Function(
        name=".".join((*classes, node.name)),
        file=file,
        line=node.lineno,
        signature=signature,
        query=_query(docstring),
        name_words=" ".join(subtokens(node.name)),
        context_words=" ".join(subtokens(" ".join((*module, *classes)))),
        body_words=" ".join(subtokens(" ".join(parameters + words))),
        docstring_digest=digest64(" ".join(subtokens(docstring))),
        body_digest=digest64(" ".join(structure)),
    )


def _functions(tree: ast.Module, file: str) -> Iterator[Function]:
    """Yield the functions that other code can call: of the module and its classes, not those inside functions."""
    module = [part for part in file.removesuffix(".py").split("/") if part != "__init__"]
    stack: list[tuple[ast.AST, tuple[str, ...]]] = [(tree, ())]
    while stack:
        node, classes = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not _is_overload(node):
                yield _function(node, classes, file, module)
            continue
        inner = (*classes, node.name) if isinstance(node, ast.ClassDef) else classes
        stack.extend((child, inner) for child in reversed(list(ast.iter_child_nodes(node))) if isinstance(child, _HOLDERS))


def read_file(path: Path, file: str) -> tuple[bytes, list[Function], str]:
    """Read one file.

    Returns:
        The digest of its content, its functions, and why it was skipped (empty when it was not).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        return b"", [], error.strerror or type(error).__name__
    digest = hashlib.sha256(content).digest()
    if len(content) > MAX_FILE_BYTES:
        return digest, [], f"larger than {MAX_FILE_BYTES} bytes"
    try:
        tree = ast.parse(content.decode("utf-8-sig"))
        return digest, list(_functions(tree, file)), ""
    except UnicodeDecodeError:
        return digest, [], "not UTF-8"
    except (SyntaxError, ValueError) as error:
        return digest, [], f"not Python {sys.version_info.major}.{sys.version_info.minor}: {error.args[0]}"
    except (RecursionError, MemoryError):
        return digest, [], "nested too deeply"


def _read_chunk(root: Path, paths: list[Path]) -> list[tuple[bytes, list[Function], str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return [read_file(path, path.relative_to(root).as_posix()) for path in paths]


def read_corpus(name: str, root: Path, executor: Executor) -> Corpus:
    paths = python_files(root)
    chunks = [paths[i : i + _CHUNK_FILES] for i in range(0, len(paths), _CHUNK_FILES)]
    digest = hashlib.sha256()
    functions: list[Function] = []
    skipped: list[Skipped] = []
    results = executor.map(_read_chunk, [root] * len(chunks), chunks)
    for path, (content, found, reason) in zip(paths, (r for c in results for r in c), strict=True):
        file = path.relative_to(root).as_posix()
        digest.update(file.encode() + b"\0" + content)
        functions += found
        if reason:
            skipped.append(Skipped(file, reason))
    return Corpus(name, digest.hexdigest(), len(paths) - len(skipped), tuple(functions), tuple(skipped))
