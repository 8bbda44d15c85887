"""The backup program, with the real SQLite and stand-ins for restic and docker that keep everything in directories."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from role_programs import loaded

appliance_backup = loaded("backup", "appliance_backup")
BackupError = appliance_backup.BackupError


class Appliance(appliance_backup.Appliance):  # type: ignore[misc, name-defined]
    """One whose restic copies directories, and whose docker knows volumes only."""

    def __init__(self, root: Path) -> None:
        configuration = root / "etc/mlops/backup/backup.json"
        configuration.parent.mkdir(parents=True)
        (root / "etc/mlops/secrets").mkdir()
        (root / "etc/mlops/secrets/restic_password").write_text("good")
        self.where = root / "repository"
        configuration.write_text(json.dumps({"repository": str(self.where), "host": "one", "keep": {"daily": 7}}))
        super().__init__(root)
        self.volumes = root / "volumes"
        self.taken: list[dict[str, Any]] = []
        self.commands: list[str] = []
        self.damaged = False
        self.forgets = False
        self.append_only = False
        self.running = ""
        self.loaded = b""
        self.dumped = b"the dump"

    def run(self, *command: str, stdin: Any = None, stdout: Any = None) -> subprocess.CompletedProcess[bytes]:
        program, *arguments = command
        self.commands.append(" ".join(command))
        code, said = getattr(self, program)(arguments, stdin, stdout)
        return subprocess.CompletedProcess(command, code, said.encode(), said.encode() if code else b"")

    def systemctl(self, arguments: list[str], *_: Any) -> tuple[int, str]:
        assert arguments == ["start", "mlops-postgres.service"]
        return 0, ""

    def docker(self, arguments: list[str], stdin: Any, stdout: Any) -> tuple[int, str]:
        place = self.volumes / arguments[-1] / "_data"
        match arguments:
            case ["volume", "inspect", *_]:
                return (0, f"{place}\n") if place.exists() else (1, "no such volume")
            case ["volume", "ls", "--quiet"]:
                return 0, "".join(f"{path.name}\n" for path in self.volumes.iterdir())
            case ["volume", "create", _]:
                place.mkdir(parents=True, exist_ok=True)
                return 0, ""
            case ["ps", *_]:
                return 0, self.running
            case ["exec", "mlops-postgres", "pg_dump", *_]:
                stdout.write(self.dumped)
                return (0, "") if self.dumped else (1, "it does not run")
            case ["exec", "--interactive", "mlops-postgres", "pg_restore", *_]:
                self.loaded = stdin.read()
                return (0, "") if self.loaded == b"the dump" else (1, "it is damaged")
        raise AssertionError(f"unexpected: docker {arguments}")

    def _restic_directory(self, snapshot: str, path: str) -> Path:
        return self.where / snapshot / path.lstrip("/")

    def restic_answers(self, arguments: list[str]) -> str:
        options = dict(item.split("=", 1) for item in arguments if item.startswith("--") and "=" in item)
        paths = [item for item in arguments[1:] if not item.startswith("--")]
        match arguments[0]:
            case "init":
                self.where.mkdir()
            case "backup":
                snapshot = f"{len(self.taken):08x}ffff"
                ignored = [item.partition("=")[2] for item in arguments if item.startswith("--exclude=")]
                for path in paths:
                    left_out = [Path(item).name for item in ignored if Path(item).parent == Path(path)]
                    target = self._restic_directory(snapshot, path)
                    shutil.copytree(path, target, ignore=shutil.ignore_patterns(*left_out))
                self.taken.append(
                    {"id": snapshot, "time": "2026-11-23T16:00:00.5Z", "hostname": options["--host"], "paths": paths}
                )
                return json.dumps(
                    {
                        "snapshot_id": snapshot,
                        "total_files_processed": 3,
                        "total_bytes_processed": 1 << 20,
                        "data_added": 1 << 10,
                    }
                )
            case "snapshots":
                return json.dumps([item for item in self.taken if options.get("--host") in {None, item["hostname"]}])
            case "forget":
                forgotten = self.taken[:-1] if self.forgets else []
                if not self.append_only:
                    self.taken = [item for item in self.taken if item not in forgotten]
                return json.dumps([{"keep": self.taken[-1:], "remove": forgotten or None}])
            case "stats":
                return json.dumps({"total_size": 4096})
            case "dump":
                return self._restic_directory(paths[0], paths[1]).read_text()
            case "restore":
                snapshot, _, path = paths[0].partition(":")
                shutil.copytree(self._restic_directory(snapshot, path), Path(options["--target"]), dirs_exist_ok=True)
        return ""

    def restic_stand_in(self, arguments: list[str], *_: Any) -> tuple[int, str]:
        if (self.secrets / "restic_password").read_text() != "good":
            return 12, "wrong password or no key found"
        if arguments[0] != "init" and not self.where.exists():
            return 10, "repository does not exist"
        if arguments[0] == "check" and self.damaged:
            return 1, "pack is damaged"
        return 0, self.restic_answers(arguments)


@pytest.fixture
def appliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Appliance:
    made = Appliance(tmp_path)
    monkeypatch.setattr(appliance_backup, "RESTIC", "restic_stand_in")
    database = made.made_volume("mlops_mlflow_data") / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE runs (id TEXT)")
        connection.execute("INSERT INTO runs VALUES ('kept')")
    (made.made_volume("mlops_mlflow_artifacts") / "weights.bin").write_bytes(b"weights")
    (made.made_volume("mlops_model_artifacts") / "model").write_text("served")
    (made.secrets / "grafana_secret_key").write_text("key")
    made.state.mkdir(parents=True)
    return made


def rows(appliance: Appliance) -> list[str]:
    database = appliance.volumes / "mlops_mlflow_data" / "_data" / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM runs")]


def with_postgres(appliance: Appliance) -> None:
    appliance.postgres_unit.parent.mkdir(parents=True)
    appliance.postgres_unit.touch()


def forget_everything(appliance: Appliance) -> None:
    shutil.rmtree(appliance.volumes)
    (appliance.secrets / "grafana_secret_key").unlink()


class TestBackup:
    def test_the_first_one_makes_the_repository(self, appliance: Appliance) -> None:
        said = appliance.back_up()
        assert "Snapshot 00000000" in said
        assert "the repository was checked" in said
        assert not appliance.staging.exists(), "copies of the databases are not left behind"

    def test_the_database_is_copied_before_the_artifacts_are_read(self, appliance: Appliance) -> None:
        appliance.back_up()
        (taken,) = appliance.taken
        assert [Path(path).name for path in taken["paths"]] == ["backup", "secrets", "_data"]

    def test_what_opens_the_repository_is_not_in_it(self, appliance: Appliance) -> None:
        appliance.back_up()
        names = {path.name for path in appliance.where.rglob("*")}
        assert "grafana_secret_key" in names
        assert "restic_password" not in names

    def test_a_repository_that_is_gone_is_not_made_anew(self, appliance: Appliance) -> None:
        appliance.back_up()
        shutil.rmtree(appliance.where)
        with pytest.raises(BackupError, match="there is no restic repository at"):
            appliance.back_up()
        assert not appliance.where.exists()

    def test_another_password_is_refused_by_name(self, appliance: Appliance) -> None:
        (appliance.secrets / "restic_password").write_text("wrong")
        with pytest.raises(BackupError, match="set backup_password to the one that the repository was made with"):
            appliance.back_up()

    def test_metrics_say_when_how_large_and_how_many(self, appliance: Appliance) -> None:
        appliance.back_up()
        written = dict(line.split() for line in appliance.metrics.read_text().splitlines())
        assert written.pop("mlops_backup_last_success_timestamp_seconds").isdigit()
        assert written == {
            "mlops_backup_check_success": "1",
            "mlops_backup_size_bytes": "4096",
            "mlops_backup_snapshots": "1",
        }

    def test_a_damaged_repository_fails_and_keeps_the_age_of_the_last_good_one(self, appliance: Appliance) -> None:
        appliance.back_up()
        before = set(appliance.metrics.read_text().splitlines())
        appliance.damaged = True
        with pytest.raises(BackupError, match="pack is damaged"):
            appliance.back_up()
        after = set(appliance.metrics.read_text().splitlines())
        assert after - before == {"mlops_backup_check_success 0"}
        assert before - after == {"mlops_backup_check_success 1"}

    def test_periods_decide_what_stays(self, appliance: Appliance) -> None:
        appliance.back_up()
        (forgotten,) = (command for command in appliance.commands if " forget " in command)
        assert forgotten.endswith("--tag=mlops --host=one --group-by=host --keep-daily=7 --keep-within=3d")

    def test_what_is_forgotten_makes_room(self, appliance: Appliance) -> None:
        appliance.back_up()
        assert "restic_stand_in prune" not in appliance.commands, "there was nothing to forget"
        appliance.forgets = True
        assert "append-only" not in appliance.back_up()
        assert len(appliance.taken) == 1
        assert "restic_stand_in prune" in appliance.commands

    def test_what_an_append_only_repository_keeps_is_said_and_no_failure(self, appliance: Appliance) -> None:
        appliance.back_up()
        appliance.forgets = appliance.append_only = True
        assert appliance.back_up().endswith("checked. It is append-only: of the snapshots to forget 1 stayed.")
        assert "mlops_backup_snapshots 2" in appliance.metrics.read_text()
        assert "restic_stand_in prune" not in appliance.commands, "it would only grow by that"

    def test_a_host_that_lost_its_database_is_no_backup(self, appliance: Appliance) -> None:
        appliance.back_up()
        forget_everything(appliance)
        with pytest.raises(BackupError, match="there is nothing to back up"):
            appliance.back_up()
        assert len(appliance.taken) == 1

    def test_credentials_reach_restic_by_its_environment_only(self, appliance: Appliance) -> None:
        (appliance.secrets / "backup_environment").write_text("# S3\nAWS_SECRET_ACCESS_KEY='s=cret'\n")
        assert appliance.environment()["AWS_SECRET_ACCESS_KEY"] == "s=cret"
        appliance.back_up()
        assert not any("s=cret" in command for command in appliance.commands)

    def test_postgresql_is_dumped(self, appliance: Appliance) -> None:
        (appliance.state / "mlflow-store").write_text("postgres\n")
        appliance.back_up()
        assert [path.read_bytes() for path in appliance.where.rglob("mlflow.dump")] == [b"the dump"]
        assert not list(appliance.where.rglob("mlflow.db")), "SQLite's file is not the database any more"

    def test_a_dump_that_fails_is_no_backup(self, appliance: Appliance) -> None:
        (appliance.state / "mlflow-store").write_text("postgres\n")
        appliance.dumped = b""
        with pytest.raises(BackupError, match="it does not run"):
            appliance.back_up()
        assert appliance.taken == []


class TestRestore:
    @pytest.mark.parametrize("lose", [lambda _: None, forget_everything], ids=["over data", "onto nothing"])
    def test_everything_comes_back(self, appliance: Appliance, lose: Callable[[Appliance], None]) -> None:
        appliance.back_up()
        lose(appliance)
        appliance.restore("latest")
        assert rows(appliance) == ["kept"]
        assert (appliance.volumes / "mlops_mlflow_artifacts/_data/weights.bin").read_bytes() == b"weights"
        assert (appliance.secrets / "grafana_secret_key").read_text() == "key"
        assert (appliance.secrets / "restic_password").read_text() == "good"

    def test_what_was_there_is_kept_aside(self, appliance: Appliance) -> None:
        appliance.back_up()
        (appliance.volumes / "mlops_mlflow_artifacts/_data/later").write_text("later")
        (appliance.secrets / "grafana_secret_key").write_text("other")
        said = appliance.restore("latest")
        (kept,) = appliance.volumes.glob("before-restore-*-mlops_mlflow_artifacts")
        assert kept.name in said
        assert (kept / "_data" / "later").read_text() == "later"
        (former,) = appliance.state.glob("before-restore-*/secrets/grafana_secret_key")
        assert former.read_text() == "other"
        assert not (appliance.volumes / "mlops_mlflow_artifacts/_data/later").exists()

    def test_a_model_of_before_is_not_served_as_one_of_the_backup(self, appliance: Appliance) -> None:
        # Those of the first model server, a replica, and a further model.
        names = [f"mlops_model_artifacts{end}" for end in ("", "_2", "-model-b")]
        for name in names:
            (appliance.made_volume(name) / "model").write_text("served")
        appliance.back_up()
        appliance.restore("latest")
        for name in names:
            assert list((appliance.volumes / name / "_data").iterdir()) == [], name

    def test_nothing_is_moved_while_services_run(self, appliance: Appliance) -> None:
        appliance.back_up()
        appliance.running = "0123abc\n"
        with pytest.raises(BackupError, match="1 services run: stop them first"):
            appliance.restore("latest")
        assert not list(appliance.volumes.glob("before-restore-*"))

    def test_a_snapshot_that_is_not_there_is_refused_with_the_hosts_that_have_some(self, appliance: Appliance) -> None:
        appliance.back_up()
        with pytest.raises(BackupError, match=r"'beef'.*it has snapshots of: one"):
            appliance.restore("beef")

    def test_look_says_what_a_restore_would_do(self, appliance: Appliance) -> None:
        appliance.back_up()
        found = appliance.look("latest")
        assert (found["store"], found["host"]) == ("sqlite", "one")
        assert found["present"] == ["mlops_mlflow_data", "mlops_mlflow_artifacts"]

    def test_postgresql_is_emptied_started_and_loaded(self, appliance: Appliance) -> None:
        (appliance.state / "mlflow-store").write_text("postgres\n")
        (appliance.made_volume("mlops_postgres_data") / "PG_VERSION").write_text("17")
        appliance.back_up()
        (appliance.state / "mlflow-store").unlink()
        with_postgres(appliance)
        said = appliance.restore("latest")
        assert "The database was loaded into PostgreSQL." in said
        assert appliance.commands[-2] == "systemctl start mlops-postgres.service"
        assert appliance.loaded == b"the dump"
        assert list((appliance.volumes / "mlops_postgres_data/_data").iterdir()) == []
        assert list(appliance.volumes.glob("before-restore-*-mlops_postgres_data/_data/PG_VERSION"))
        assert appliance.store() == "postgres"
        assert not appliance.dump.exists()

    def test_a_dump_that_cannot_be_loaded_stays_and_can_be_loaded_later(self, appliance: Appliance) -> None:
        (appliance.state / "mlflow-store").write_text("postgres\n")
        appliance.dumped = b"half of the"
        appliance.back_up()
        with_postgres(appliance)
        with pytest.raises(BackupError, match="it is damaged\nAll else is restored"):
            appliance.restore("latest")
        appliance.dump.write_bytes(b"the dump")
        assert appliance.load() == "The database was loaded into PostgreSQL."
        with pytest.raises(BackupError, match="there is no dump to load"):
            appliance.load()

    def test_data_of_postgresql_are_refused_where_it_is_not(self, appliance: Appliance) -> None:
        (appliance.state / "mlflow-store").write_text("postgres\n")
        appliance.back_up()
        with pytest.raises(BackupError, match="put the host into group postgres and run"):
            appliance.look("latest")
