"""The administrator's password becomes that of the secret file, and nothing else of the accounts changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from role_programs import loaded
from werkzeug.security import check_password_hash, generate_password_hash

administrator = loaded("mlflow", "administrator")

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, username TEXT, password_hash TEXT, is_admin BOOLEAN)"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text("the new one: ä")
    return file


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """As MLflow makes it, with two accounts."""
    file = tmp_path / "login.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(USERS)
        for name, password, admin in (("admin", "the old one", 1), ("grace", "hers", 0)):
            row = (name, generate_password_hash(password), admin)
            connection.execute("INSERT INTO users (username, password_hash, is_admin) VALUES (?, ?, ?)", row)
    return file


def rows(database: Path) -> dict[str, tuple[str, bool]]:
    """Hash and rank by name."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT username, password_hash, is_admin FROM users")
        return {name: (password, bool(admin)) for name, password, admin in found}


def test_the_administrator_has_the_password_of_the_file_and_others_keep_theirs(
    database: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rows(database)
    administrator.main(database, "admin", secret)
    after = rows(database)
    assert check_password_hash(after["admin"][0], "the new one: ä")
    assert not check_password_hash(after["admin"][0], "the old one")
    assert after["grace"] == before["grace"]
    said = capsys.readouterr().out
    assert "secret file" in said
    assert "new one" not in said


def test_a_password_that_holds_already_is_not_written_again(
    database: Path, secret: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    administrator.main(database, "admin", secret)
    before = rows(database)
    capsys.readouterr()
    administrator.main(database, "admin", secret)
    assert (rows(database), capsys.readouterr().out) == (before, "")


def test_an_account_that_was_no_administrator_becomes_one_with_the_password(database: Path, secret: Path) -> None:
    administrator.main(database, "grace", secret)
    password, admin = rows(database)["grace"]
    assert admin
    assert check_password_hash(password, "the new one: ä")


def test_an_account_that_is_not_there_is_not_made(database: Path, secret: Path) -> None:
    before = rows(database)
    administrator.main(database, "nobody", secret)
    assert rows(database) == before


def test_before_the_first_start_there_is_nothing_to_do_and_no_database_is_made(tmp_path: Path, secret: Path) -> None:
    administrator.main(tmp_path / "login.db", "admin", secret)
    assert not (tmp_path / "login.db").exists()


def test_a_database_without_accounts_stays_as_it_is(tmp_path: Path, secret: Path) -> None:
    empty = tmp_path / "login.db"
    empty.touch()
    administrator.main(empty, "admin", secret)
    assert empty.stat().st_size == 0


@pytest.mark.parametrize(("content", "error"), [(None, FileNotFoundError), (b"\xff\xfe", UnicodeDecodeError)])
def test_a_secret_that_cannot_be_read_changes_no_password(
    database: Path, tmp_path: Path, content: bytes | None, error: type[Exception]
) -> None:
    before = rows(database)
    file = tmp_path / "bad"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(error):
        administrator.main(database, "admin", file)
    assert rows(database) == before


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path, secret: Path) -> None:
    file = tmp_path / "login.db"
    file.write_bytes(b"no database at all " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        administrator.main(file, "admin", secret)
