"""Copy MLflow's SQLite database into the appliance's PostgreSQL, whole or not at all, and prove that both are equal.

Runs in MLflow's image while MLflow stands still. The copy is one transaction: a run that is cut off leaves nothing.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.store.db.utils as mlflow_db
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine

SOURCE = Path("/var/lib/mlflow/mlflow.db")
COPY = SOURCE.with_name("mlflow-before-postgres.db")
PASSWORD = Path("/run/secrets/postgres_password")
BATCH = 5000
# What MLflow itself puts into a new database.
SEEDS = {"experiments": 1, "workspaces": 1}

# Rows and digest by table.
Contents = dict[str, tuple[int, str]]


class MigrationError(Exception):
    """The data cannot be copied; the message says why and what to do."""


def snapshot() -> None:
    """A consistent copy of the SQLite file, what its journal holds included, beside the original."""
    part = COPY.with_suffix(".part")
    part.unlink(missing_ok=True)
    source = sqlite3.connect(f"file:{SOURCE}?mode=ro", uri=True)
    target = sqlite3.connect(part)
    source.backup(target)
    (verdict,) = target.execute("PRAGMA integrity_check(1)").fetchone()
    source.close()
    target.close()
    if verdict != "ok":
        raise MigrationError(f"{SOURCE} is damaged ({verdict}): restore a backup of it first")
    part.replace(COPY)


def bring_to_schema(engine: Engine, revision: str) -> None:
    """Give a database the tables of this MLflow, by MLflow's own migrations."""
    if mlflow_db._get_schema_version(engine) != revision:
        mlflow_db._initialize_tables(engine)


def tables_of(engine: Engine) -> list[sa.Table]:
    """MLflow's tables in PostgreSQL, those that others refer to first."""
    metadata = sa.MetaData()
    metadata.reflect(engine)
    tables = [table for table in metadata.sorted_tables if table.name != "alembic_version"]
    for table in tables:
        for column in table.columns:
            if isinstance(column.type, sa.JSON):
                # To the letter: what is parsed and written anew is another text.
                column.type = sa.Text()
    return tables


def stored(table: sa.Table) -> list[sa.Column[Any]]:
    """The columns of a table that hold data of their own."""
    return [column for column in table.columns if column.computed is None]


def rows_of(connection: Connection, table: sa.Table) -> Iterator[tuple[Any, ...]]:
    """All rows of a table, with the same values from either database."""
    columns = stored(table)
    texts = [isinstance(column.type, sa.String) for column in columns]
    query = sa.select(*columns).execution_options(yield_per=BATCH)
    for row in connection.execute(query):
        yield tuple(
            # SQLite keeps a JSON text that is a number as a number; psycopg2 returns bytes as a view of them.
            bytes(value) if isinstance(value, memoryview) else str(value) if text and value is not None else value
            for value, text in zip(row, texts, strict=True)
        )


def contents(connection: Connection, tables: list[sa.Table]) -> Contents:
    """What the tables hold. The digest of a table is the sum of those of its rows, so their order does not matter."""
    found: Contents = {}
    for table in tables:
        count, total = 0, 0
        for row in rows_of(connection, table):
            count += 1
            total += int.from_bytes(hashlib.sha256(repr(row).encode("utf-8", "surrogatepass")).digest(), "big")
        found[table.name] = (count, f"{total % 2**256:064x}")
    return found


def digest_of(found: Contents) -> str:
    """One digest of everything."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def make_room(connection: Connection, tables: list[sa.Table]) -> None:
    """Empty the target when nobody's data are in it.

    Raises:
        MigrationError: it holds data that are no copy of a former migration.
    """
    connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS mlops"))
    connection.execute(sa.text("CREATE TABLE IF NOT EXISTS mlops.migration (digest text NOT NULL)"))
    marks = set(connection.execute(sa.text("SELECT digest FROM mlops.migration")).scalars())
    found = contents(connection, tables)
    data = [name for name, (count, _) in found.items() if count > SEEDS.get(name, 0)]
    if data and digest_of(found) not in marks:
        raise MigrationError(
            f"PostgreSQL already holds data of its own, in the tables {', '.join(data)}: nothing was copied. "
            "docs/database.md tells how to look at them and how to begin with an empty database"
        )
    names = ", ".join(table.name for table in tables)
    connection.execute(sa.text(f"TRUNCATE {names}, mlops.migration"))


def copy_table(source: Connection, target: Connection, table: sa.Table) -> None:
    """Copy one table.

    Raises:
        MigrationError: PostgreSQL refuses a row.
    """
    names = [column.name for column in stored(table)]
    batch: list[dict[str, Any]] = []
    try:
        for row in rows_of(source, table):
            batch.append(dict(zip(names, row, strict=True)))
            if len(batch) == BATCH:
                target.execute(table.insert(), batch)
                batch = []
        if batch:
            target.execute(table.insert(), batch)
    except (ValueError, sa.exc.SQLAlchemyError) as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise MigrationError(f"table {table.name}: PostgreSQL refuses a row: {reason}") from error


def set_sequences(connection: Connection, tables: list[sa.Table]) -> int:
    """Let every sequence go on after the largest number that is in use; returns how many there are."""
    sequences = 0
    for table in tables:
        for column in table.columns:
            if not isinstance(column.type, sa.Integer):
                continue
            names = {"table": table.name, "column": column.name}
            query = sa.text("SELECT pg_get_serial_sequence(:table, :column)")
            sequence = connection.execute(query, names).scalar()
            if sequence is None:
                continue
            largest = connection.execute(sa.select(sa.func.max(column))).scalar()
            # Experiment 0 is MLflow's own: sequences begin at 1.
            next_one = max(largest or 0, 0) + 1
            connection.execute(sa.text("SELECT setval(:name, :next, false)"), {"name": sequence, "next": next_one})
            value = connection.execute(sa.select(sa.column("last_value")).select_from(sa.text(sequence))).scalar()
            if value != next_one:
                raise MigrationError(f"sequence {sequence} stands at {value} instead of {next_one}")
            sequences += 1
    return sequences


def migrate() -> str:
    """Copy everything; returns what was copied, for people.

    Raises:
        MigrationError: nothing was copied; the message says why.
    """
    snapshot()
    revision = mlflow_db._get_latest_schema_revision()
    source_engine = sa.create_engine(f"sqlite:///{COPY}")
    password = PASSWORD.read_text(encoding="utf-8").strip()
    url = URL.create("postgresql+psycopg2", "mlflow", password, "postgres", database="mlflow")
    target_engine = sa.create_engine(url)
    bring_to_schema(source_engine, revision)
    bring_to_schema(target_engine, revision)
    tables = tables_of(target_engine)
    in_source = set(sa.inspect(source_engine).get_table_names()) - {"alembic_version"}
    if in_source != {table.name for table in tables}:
        different = ", ".join(sorted(in_source ^ {table.name for table in tables}))
        raise MigrationError(f"SQLite and PostgreSQL do not have the same tables; they differ in {different}")

    with source_engine.connect() as source, target_engine.begin() as target:
        make_room(target, tables)
        for table in tables:
            copy_table(source, target, table)
        sequences = set_sequences(target, tables)
        wanted, found = contents(source, tables), contents(target, tables)
        unequal = [name for name in wanted if wanted[name] != found[name]]
        if unequal:
            raise MigrationError(f"the copies of these tables differ from their originals: {', '.join(unequal)}")
        mark = {"digest": digest_of(found)}
        target.execute(sa.text("INSERT INTO mlops.migration VALUES (:digest)"), mark)
    rows = sum(count for count, _ in found.values())
    lines = [f"{name}: {count} rows, digest {digest[:16]}" for name, (count, digest) in sorted(found.items()) if count]
    lines.append(f"Equal in both databases: {len(tables)} tables, {rows} rows; {sequences} sequences set.")
    lines.append(f"Schema revision {revision}. The old database stays in {SOURCE}, and a copy of it in {COPY}.")
    return "\n".join(lines)


def main() -> None:
    """Run as a program."""
    # MLflow's and Alembic's own messages are of no use here.
    logging.disable(logging.INFO)
    try:
        print(migrate())
    except (MigrationError, OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
        raise SystemExit(str(getattr(error, "orig", None) or error).strip()) from None


if __name__ == "__main__":
    main()
