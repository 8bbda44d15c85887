"""Give MLflow's administrator the password of the secret file, before the server starts.

MLflow itself takes the password from its configuration at its first start only.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from werkzeug.security import check_password_hash, generate_password_hash


def main(database: Path, name: str, secret: Path) -> None:
    """Set the password where there is such an account with another one.

    Args:
        database: the SQLite file of the accounts; before the first start there is none.
        name: the administrator's.
        secret: file with the password.
    """
    if not database.exists():
        return
    password = secret.read_text(encoding="utf-8")
    with closing(sqlite3.connect(database, timeout=30)) as connection, connection:
        tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'users'").fetchone()
        query = "SELECT password_hash FROM users WHERE username = ?"
        found = connection.execute(query, (name,)).fetchone() if tables else None
        if found and not check_password_hash(found[0], password):
            change = "UPDATE users SET password_hash = ?, is_admin = 1 WHERE username = ?"
            connection.execute(change, (generate_password_hash(password), name))
            print("The administrator has the password of the secret file.")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
