"""Two databases with the same data have the same digest, and any difference shows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from role_programs import loaded

copy_store = loaded("mlflow", "copy_store")

METADATA = sa.MetaData()
METRICS = sa.Table(
    "metrics",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("value", sa.Double),
    sa.Column("is_nan", sa.Boolean),
    sa.Column("document", sa.Text),
    sa.Column("secret", sa.LargeBinary),
    sa.Column("doubled", sa.Double, sa.Computed("value * 2")),
)
ROW: dict[str, Any] = {"id": 1, "value": 0.1, "is_nan": False, "document": '{"a": 1}', "secret": b"\x00\xff"}


def contents(*rows: dict[str, Any]) -> dict[str, tuple[int, str]]:
    engine = sa.create_engine("sqlite://")
    METADATA.create_all(engine)
    with engine.begin() as connection:
        connection.execute(METRICS.insert(), list(rows))
        found: dict[str, tuple[int, str]] = copy_store.contents(connection, [METRICS])
    return found


def test_the_order_of_rows_does_not_matter() -> None:
    other = {**ROW, "id": 2}
    assert contents(ROW, other) == contents(other, ROW)
    assert contents(ROW, other)["metrics"][0] == 2


@pytest.mark.parametrize(
    "change",
    [
        {"value": math.nextafter(0.1, 1)},
        {"value": None},
        {"is_nan": True},
        {"document": '{"a":1}'},
        {"document": None},
        {"secret": b"\x00"},
    ],
    ids=str,
)
def test_the_smallest_difference_shows(change: dict[str, Any]) -> None:
    assert contents({**ROW, **change}) != contents(ROW)


def test_a_number_that_sqlite_keeps_for_a_text_is_that_text() -> None:
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        # A column of type JSON has numeric affinity there.
        connection.execute(sa.text("CREATE TABLE jobs (progress JSON)"))
        connection.execute(sa.text("INSERT INTO jobs VALUES ('5')"))
        table = sa.Table("jobs", sa.MetaData(), sa.Column("progress", sa.Text))
        assert list(copy_store.rows_of(connection, table)) == [("5",)]


def test_columns_that_the_database_computes_are_not_copied() -> None:
    assert "doubled" not in {column.name for column in copy_store.stored(METRICS)}


def test_the_program_keeps_a_consistent_copy_and_says_when_the_file_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "mlflow.db"
    monkeypatch.setattr(copy_store, "SOURCE", source)
    monkeypatch.setattr(copy_store, "COPY", tmp_path / "copy.db")
    engine = sa.create_engine(f"sqlite:///{source}")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE runs AS SELECT hex(randomblob(5000)) AS name"))
    engine.dispose()
    copy_store.snapshot()
    assert (tmp_path / "copy.db").exists()

    damaged = bytearray(source.read_bytes())
    damaged[4096:4200] = bytes(104)
    source.write_bytes(damaged)
    with pytest.raises(copy_store.MigrationError, match="is damaged"):
        copy_store.snapshot()
