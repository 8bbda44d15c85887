from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
from codesearch.corpus import MAX_FILE_BYTES, Corpus, Function, corpus_digest, read_corpus


def read(root: Path) -> Corpus:
    with ThreadPoolExecutor(1) as executor:
        return read_corpus("example", root, executor)


def functions_of(root: Path, source: str, file: str = "module.py") -> list[Function]:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(source), encoding="utf-8")
    return list(read(root).functions)


def test_a_function_is_described_by_its_first_paragraph(tmp_path: Path) -> None:
    (function,) = functions_of(
        tmp_path,
        '''
        @decorated
        async def readRows(path: str, *, header=True) -> list[str]:
            """Read the rows
            of a file.

            Not this.
            """
            return await openFile(path, "some mode")
        ''',
        "package/io.py",
    )
    assert function.name == "readRows"
    assert function.file == "package/io.py"
    assert function.line == 3
    assert function.signature == "readRows(path: str, *, header=True) -> list[str]"
    assert function.query == "Read the rows of a file."
    assert function.name_words == "read row"
    assert function.place_words == "packag io"
    assert "open file path some mod" in function.body_words
    assert "not" not in function.body_words


def test_methods_are_named_with_their_classes_and_inner_functions_left_out(tmp_path: Path) -> None:
    found = functions_of(
        tmp_path,
        '''
        class Outer:
            class Inner:
                def method(self):
                    """Do one thing."""
                    def helper():
                        """Help."""
        if True:
            def conditional():
                """Exist on some systems."""
        def undocumented(): ...
        ''',
    )
    assert [function.name for function in found] == ["Outer.Inner.method", "conditional"]
    assert read(tmp_path).undocumented == 1


def test_layout_comments_and_docstring_do_not_change_the_body(tmp_path: Path) -> None:
    one, two, three = functions_of(
        tmp_path,
        '''
        def one(x):
            """First."""
            return f(x, 1)
        def two(x):
            """Second."""
            # why
            return f(
                x, 1)
        def three(x):
            """Second!"""
            return f(x, 2)
        ''',
    )
    assert one.body_digest == two.body_digest != three.body_digest
    assert one.docstring_digest != two.docstring_digest == three.docstring_digest


def test_files_that_are_not_python_are_listed_with_the_reason_and_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text('def f():\n    """Do it."""\n')
    (tmp_path / "bom.py").write_bytes(b'\xef\xbb\xbfdef g():\n    """Do it too."""\n')
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "old.py").write_text("print 'hello'\n")
    (tmp_path / "null.py").write_bytes(b"x = 1\0\n")
    (tmp_path / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (tmp_path / "huge.py").write_text("#" * (MAX_FILE_BYTES + 1))
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere")

    corpus = read(tmp_path)

    reasons = {skipped.file: skipped.reason for skipped in corpus.skipped}
    assert reasons.keys() == {"latin.py", "old.py", "null.py", "deep.py", "huge.py", "gone.py"}
    assert reasons["latin.py"] == "not UTF-8"
    assert reasons["old.py"].startswith("not Python 3.")
    assert reasons["gone.py"] == "No such file or directory"
    assert [function.name for function in corpus.functions] == ["g", "f"]
    assert corpus.files == 2


def test_tests_and_other_peoples_code_are_no_part_of_a_corpus(tmp_path: Path) -> None:
    for directory in ("src", "tests", "site-packages", ".venv", "__pycache__"):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "module.py").write_text('def f():\n    """Do it."""\n')
    assert [function.file for function in read(tmp_path).functions] == ["src/module.py"]


@pytest.mark.parametrize("body", ["'\\ud800'", "0x" + "f" * 5000, "1e400", "b'\\xff'", "x"])
def test_odd_literals_are_read(tmp_path: Path, body: str) -> None:
    (function,) = functions_of(tmp_path, f'def f(a={body}):\n    """Do \\ud800 it."""\n    return {body}\n')
    json.dumps([function.signature, function.query], ensure_ascii=False).encode()


def test_the_invalid_escapes_of_a_corpus_are_no_warnings_of_ours(tmp_path: Path) -> None:
    assert functions_of(tmp_path, 'def f():\n    """Do it."""\n    return "\\d"\n')


def test_a_very_long_signature_is_shortened(tmp_path: Path) -> None:
    parameters = ", ".join(f"parameter_{number}" for number in range(50))
    (function,) = functions_of(tmp_path, f'def f({parameters}):\n    """Do it."""\n')
    assert len(function.signature) == 200
    assert function.signature.endswith("…")


def test_the_digest_follows_from_paths_and_contents_alone(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\n")
    digest = corpus_digest(tmp_path)
    os.utime(tmp_path / "a.py", (0, 0))
    (tmp_path / "readme.txt").write_text("not code")
    assert corpus_digest(tmp_path) == digest

    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = corpus_digest(tmp_path)
    assert renamed != digest
    (tmp_path / "b.py").write_text("x = 2\n")
    assert corpus_digest(tmp_path) != renamed


def test_any_number_of_processes_reads_the_same(corpus_root: Path, corpus: Corpus) -> None:
    with ThreadPoolExecutor(1) as one:
        assert read_corpus("example", corpus_root, one) == corpus
    assert len(corpus.functions) == 216
    assert corpus.undocumented == 18
