#!/usr/bin/python3
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Back up what an appliance cannot make again, and bring it back: one restic snapshot for each backup.

A snapshot holds a copy of the database, which is consistent in itself, the artifacts, read after it so that each that
the database names is there, Grafana's database, the secrets, and what the host remembers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

DOCKER = "docker"
SYSTEMCTL = "systemctl"
RESTIC = "restic"
TAG = "mlops"
POSTGRES = "mlops-postgres"
# PostgreSQL's administrator, who is let in by the socket in the container only.
POSTGRES_LOGIN = ("--host=/tmp", "--username=postgres", "--dbname=mlflow")

ARTIFACTS = "mlops_mlflow_artifacts"
# SQLite databases by the volume they are on. The owner of MLflow's is what MLFLOW_STORE says.
MLFLOW_DATABASE = ("mlops_mlflow_data", "mlflow.db")
# MLflow's accounts: SQLite on its volume, whatever has the runs.
LOGIN_DATABASE = ("mlops_mlflow_data", "login.db")
GRAFANA_DATABASE = ("mlops_grafana_data", "grafana.db")
POSTGRES_VOLUME = "mlops_postgres_data"
# The model servers' copies of models, which they fetch again. One of before the restore must not be taken for the same.
# That of a replica or a further model has a name that begins so.
SERVED_MODELS = "mlops_model_artifacts"
MLFLOW_STORE = "mlflow-store"
# A backup is opened with these: inside they would be of no use, and put back they would lock the way to it.
OWN_SECRETS = frozenset({"restic_password", "backup_environment"})

# Everything younger stays.
KEEP_WITHIN = "3d"

# restic(1), "Exit status codes"
NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 10, 11, 12


class BackupError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """What the role gives to this program.

    Attributes:
        repository: where snapshots are kept, as restic names it.
        host: name of this appliance in the repository.
        keep: how many snapshots stay, by restic's names of periods.
    """

    repository: str
    host: str
    keep: dict[str, int]


class Appliance:
    """One host: where things are, and the programs that are run.

    Args:
        root: the root of the file system, another directory in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.configuration = root / "etc/mlops/backup/backup.json"
        self.secrets = root / "etc/mlops/secrets"
        self.state = root / "var/lib/mlops"
        self.staging = self.state / "backup"
        self.dump = self.state / "restore" / "mlflow.dump"
        self.used_repository = self.state / "backup-repository"
        self.metrics = self.state / "metrics" / "mlops_backup.prom"
        self.cache = root / "var/cache/mlops-backup"
        self.postgres_unit = root / "etc/systemd/system" / f"{POSTGRES}.service"
        self.settings = Settings(**json.loads(self.configuration.read_text(encoding="utf-8")))
        # What restic knows this appliance's snapshots by.
        self.own = (f"--tag={TAG}", f"--host={self.settings.host}")

    # -- programs -------------------------------------------------------------------------------------------------

    def run(
        self, *command: str, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end; its result is the caller's to judge."""
        return subprocess.run(
            command,
            env=self.environment(),
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )

    def output(self, *command: str) -> str:
        """What a program prints.

        Raises:
            BackupError: it failed.
        """
        result = self.run(*command)
        if result.returncode != 0:
            raise BackupError(f"`{' '.join(command)}` failed: {_said(result)}")
        return result.stdout.decode()

    def environment(self) -> dict[str, str]:
        """The environment of restic: the operator's credentials, then what is decided here."""
        extra = self.secrets / "backup_environment"
        lines = extra.read_text(encoding="utf-8").splitlines() if extra.exists() else []
        pairs = (line.split("=", 1) for line in map(str.strip, lines) if "=" in line and not line.startswith("#"))
        return {
            **os.environ,
            **{key.strip(): value.strip().strip("\"'") for key, value in pairs},
            "RESTIC_REPOSITORY": self.settings.repository,
            "RESTIC_PASSWORD_FILE": str(self.secrets / "restic_password"),
            "RESTIC_CACHE_DIR": str(self.cache),
        }

    def restic(self, *arguments: str) -> str:
        """What restic prints.

        Raises:
            BackupError: it failed.
        """
        result = self.run(RESTIC, *arguments)
        if result.returncode == 0:
            return result.stdout.decode()
        where = self.settings.repository
        reasons = {
            NO_REPOSITORY: f"there is no restic repository at {where}: correct backup_repository, or bring it back.",
            LOCKED: f"the repository {where} is in use by another backup: wait for it, or see `restic list locks`.",
            WRONG_PASSWORD: f"the password in {self.secrets}/restic_password does not open the repository {where}: "
            "set backup_password to the one that the repository was made with.",
        }
        raise BackupError(reasons.get(result.returncode, f"`restic {arguments[0]}` failed: {_said(result)}"))

    def volume(self, name: str) -> Path | None:
        """Where a volume's data are, or None when there is no such volume."""
        result = self.run(DOCKER, "volume", "inspect", "--format", "{{.Mountpoint}}", name)
        return Path(result.stdout.decode().strip()) if result.returncode == 0 else None

    def made_volume(self, name: str) -> Path:
        """Where a volume's data are; it is made when it is missing."""
        self.output(DOCKER, "volume", "create", name)
        place = self.volume(name)
        if place is None:
            raise BackupError(f"volume {name} was made and is not there.")
        return place

    def store(self) -> str:
        """Where MLflow's database is: ``sqlite``, ``postgres``, or the address of one that is not this host's."""
        path = self.state / MLFLOW_STORE
        return path.read_text(encoding="utf-8").strip() if path.exists() else "sqlite"

    # -- backup ---------------------------------------------------------------------------------------------------

    def back_up(self) -> str:
        """Take a snapshot, forget old ones, check the repository; returns what was done, for people.

        Raises:
            BackupError: no snapshot was taken, or the repository is damaged.
        """
        started = time.time()
        self._open_or_make_repository()
        paths = self._stage()
        self.restic("unlock")
        excluded = (f"--exclude={self.secrets / name}" for name in sorted(OWN_SECRETS))
        said = self.restic("backup", "--json", *self.own, *excluded, *map(str, paths))
        summary = json.loads(said.splitlines()[-1])
        shutil.rmtree(self.staging)
        stayed = self._forget()
        try:
            self.restic("check")
        except BackupError:
            self._write_metrics(None, checked=False)
            raise
        self._write_metrics(started, checked=True)
        return (
            f"Snapshot {summary['snapshot_id'][:8]} in {self.settings.repository}: "
            f"{summary['total_files_processed']} files, {summary['total_bytes_processed'] >> 20} MiB, "
            f"{summary['data_added'] >> 10} KiB of them new; {time.time() - started:.0f} s; the repository was checked."
            + (f" It is append-only: of the snapshots to forget {stayed} stayed." if stayed else "")
        )

    def _forget(self) -> int:
        """Forget the snapshots that no period keeps; returns how many an append-only repository did not give up."""
        keep = [f"--keep-{period}={count}" for period, count in self.settings.keep.items() if count > 0]
        if not keep:
            return 0
        # Whatever the periods say: a backup of a host that lost its data must not push out the one from before.
        keep.append(f"--keep-within={KEEP_WITHIN}")
        groups = json.loads(self.restic("forget", "--json", *self.own, "--group-by=host", *keep))
        forgotten = {item["id"] for group in groups for item in group["remove"] or ()}
        # restic reports those as forgotten, too, that are still there.
        stayed = forgotten & {item["id"] for item in self.snapshots()}
        if forgotten - stayed:
            self.restic("prune")
        return len(stayed)

    def _open_or_make_repository(self) -> None:
        where = self.settings.repository
        result = self.run(RESTIC, "cat", "config")
        known = self.used_repository.exists() and self.used_repository.read_text(encoding="utf-8") == where
        # Where snapshots were and are no more, a new repository would only hide that they are gone.
        if result.returncode == NO_REPOSITORY and not known:
            self.restic("init")
        elif result.returncode != 0:
            self.restic("cat", "config")
        self.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.used_repository.write_text(where, encoding="utf-8")

    def _stage(self) -> list[Path]:
        """Lay consistent copies of the databases beside a list of what there is; returns all paths to back up."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(mode=0o700, parents=True)
        store = self.store()
        databases = [LOGIN_DATABASE, GRAFANA_DATABASE]
        if store == "sqlite":
            databases.insert(0, MLFLOW_DATABASE)
        elif store == "postgres":
            self._dump_postgres(self.staging / "mlflow.dump")
        copied = [database for database in databases if self._copy_sqlite(*database)]
        contents = dict.fromkeys(volume for volume, _ in copied)
        if store == "sqlite" and MLFLOW_DATABASE not in copied:
            raise BackupError("MLflow has no database on this host: there is nothing to back up. Run site.yml first.")
        paths = [self.staging, self.secrets]
        artifacts = self.volume(ARTIFACTS)
        volumes = {}
        if artifacts is not None:
            volumes[ARTIFACTS] = _owner(artifacts) | {"path": str(artifacts)}
            paths.append(artifacts)
        for volume in contents:
            volumes[volume] = _owner(self.staging / volume) | {"path": str(self.staging / volume)}
        manifest = {"format": 1, "store": store, "secrets": str(self.secrets), "volumes": volumes}
        (self.staging / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        return paths

    def _dump_postgres(self, file: Path) -> None:
        with file.open("wb") as stream:
            # Not compressed: restic does that, and finds what is in an earlier snapshot already.
            dump = ("pg_dump", "--format=custom", "--compress=0", *POSTGRES_LOGIN)
            result = self.run(DOCKER, "exec", POSTGRES, *dump, stdout=stream)
        if result.returncode != 0:
            raise BackupError(f"PostgreSQL's data cannot be read: {_said(result)}")

    def _copy_sqlite(self, volume: str, name: str) -> bool:
        place = self.volume(volume)
        source = place / name if place else None
        if place is None or source is None or not source.exists():
            return False
        copy = self.staging / volume
        copy.mkdir(exist_ok=True)
        # Read-only: this must not leave a file that the database's owner cannot write.
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=60)) as connection,
            closing(sqlite3.connect(copy / name)) as target,
        ):
            connection.backup(target)
        _own(copy, _owner(place))
        _own(copy / name, _owner(source))
        return True

    def _write_metrics(self, succeeded: float | None, *, checked: bool) -> None:
        lines = [f"mlops_backup_check_success {int(checked)}"]
        if succeeded is None:
            # When the last good one was is still true.
            former = self.metrics.read_text(encoding="utf-8").splitlines() if self.metrics.exists() else []
            lines += [line for line in former if not line.startswith("mlops_backup_check_success")]
        else:
            size = json.loads(self.restic("stats", "--mode=raw-data", "--json"))["total_size"]
            lines += [
                f"mlops_backup_last_success_timestamp_seconds {succeeded:.0f}",
                f"mlops_backup_size_bytes {size}",
                f"mlops_backup_snapshots {len(self.snapshots())}",
            ]
        self.metrics.parent.mkdir(mode=0o755, exist_ok=True)
        temporary = self.metrics.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        # The collector's user is not root.
        temporary.chmod(0o644)
        temporary.replace(self.metrics)

    # -- restore --------------------------------------------------------------------------------------------------

    def snapshots(self) -> list[dict[str, Any]]:
        """The snapshots of this appliance, oldest first."""
        return list(json.loads(self.restic("snapshots", "--json", *self.own)))

    def find(self, wanted: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A snapshot and its manifest.

        Args:
            wanted: ``latest`` of this appliance, or the id of any snapshot in the repository.

        Raises:
            BackupError: there is no such snapshot, or it is none of this program's.
        """
        every = self.snapshots() if wanted == "latest" else json.loads(self.restic("snapshots", "--json"))
        found = [item for item in every if wanted == "latest" or item["id"].startswith(wanted)]
        if not found:
            hosts = {item["hostname"] for item in json.loads(self.restic("snapshots", "--json"))}
            raise BackupError(
                f"restore_snapshot: {wanted!r}: {self.settings.repository} has no such snapshot of "
                f"{self.settings.host}; it has snapshots of: {', '.join(sorted(hosts)) or 'no host'}."
            )
        snapshot = found[-1]
        staged = next((path for path in snapshot["paths"] if path.endswith("/mlops/backup")), None)
        if staged is None:
            raise BackupError(f"restore_snapshot: {wanted!r} is no backup of an appliance.")
        snapshot["staged"] = staged
        manifest = json.loads(self.restic("dump", snapshot["id"], f"{staged}/manifest.json"))
        if manifest["store"] == "postgres" and not self.postgres_unit.exists():
            raise BackupError(
                f"snapshot {snapshot['id'][:8]} has MLflow's data from PostgreSQL, which is not on this host: "
                "put the host into group postgres and run site.yml first."
            )
        return snapshot, manifest

    def look(self, wanted: str) -> dict[str, Any]:
        """What a restore would bring back, and the volumes that hold something now. Changes nothing."""
        snapshot, manifest = self.find(wanted)
        volumes = [MLFLOW_DATABASE[0], ARTIFACTS, POSTGRES_VOLUME, GRAFANA_DATABASE[0]]
        places = {name: self.volume(name) for name in volumes}
        return {
            "snapshot": snapshot["id"],
            "time": snapshot["time"][:19],
            "host": snapshot["hostname"],
            "store": manifest["store"],
            "present": [name for name, place in places.items() if place and any(place.iterdir())],
        }

    def restore(self, wanted: str) -> str:
        """Put a snapshot in the place of what is there, which is kept aside; returns what was done, for people.

        Everything is fetched and verified before the first thing is moved.

        Raises:
            BackupError: it cannot be restored; nothing was moved, unless the message says so.
        """
        snapshot, manifest = self.find(wanted)
        running = self.output(DOCKER, "ps", "--quiet", "--filter=label=mlops.unit").split()
        if running:
            raise BackupError(f"{len(running)} services run: stop them first (playbooks/down.yml).")
        fetched = self._fetch(snapshot, manifest)

        aside = f"before-restore-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        kept = self._swap_volumes(fetched, manifest, aside)
        kept += self._swap_secrets(aside)
        (self.state / MLFLOW_STORE).write_text(f"{manifest['store']}\n", encoding="utf-8")
        (self.state / MLFLOW_STORE).chmod(0o600)
        said = f"Restored {snapshot['id'][:8]} of {snapshot['time'][:19]}. Kept aside: {', '.join(kept) or 'nothing'}."
        return f"{said} {self.load()}" if manifest["store"] == "postgres" else said

    def _fetch(self, snapshot: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Path]:
        """Bring the snapshot to the disk, beside the places where it belongs; returns new volumes by name."""
        fetched = {}
        for name, recorded in manifest["volumes"].items():
            # Beside the data, so that it is the same file system and taking its place is a rename.
            new = self.made_volume(name).with_name("_restore")
            self._fetch_directory(snapshot["id"], recorded["path"], new)
            _own(new, recorded)
            fetched[name] = new
        self._fetch_directory(snapshot["id"], manifest["secrets"], self.secrets.with_name("secrets.restore"))
        if manifest["store"] == "postgres":
            self._fetch_directory(snapshot["id"], snapshot["staged"], self.dump.parent, "--include=/mlflow.dump")
        return fetched

    def _fetch_directory(self, snapshot: str, path: str, target: Path, *options: str) -> None:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(mode=0o700, parents=True)
        self.restic("restore", f"{snapshot}:{path}", f"--target={target}", "--verify", *options)

    def _swap_volumes(self, fetched: dict[str, Path], manifest: dict[str, Any], aside: str) -> list[str]:
        kept = []
        volumes = self.output(DOCKER, "volume", "ls", "--quiet").split()
        emptied = [name for name in volumes if name.startswith(SERVED_MODELS)]
        emptied += [POSTGRES_VOLUME] if manifest["store"] == "postgres" else []
        places = {name: self.volume(name) for name in (*fetched, *emptied)}
        for name, place in places.items():
            if place is None:
                continue
            owner = _owner(place)
            if any(place.iterdir()):
                other = self.made_volume(f"{aside}-{name}")
                other.rmdir()
                place.rename(other)
                kept.append(f"volume {aside}-{name}")
            else:
                place.rmdir()
            if name in fetched:
                fetched[name].rename(place)
            else:
                place.mkdir()
                _own(place, owner)
        return kept

    def _swap_secrets(self, aside: str) -> list[str]:
        fetched, former = self.secrets.with_name("secrets.restore"), self.state / aside / "secrets"
        shutil.copytree(self.secrets, former)
        former.parent.chmod(0o700)
        former.chmod(0o700)
        for path in fetched.iterdir():
            if path.name not in OWN_SECRETS:
                path.replace(self.secrets / path.name)
        shutil.rmtree(fetched)
        return [str(former)]

    def load(self) -> str:
        """Start PostgreSQL and load the dump of a restored snapshot; returns what was done, for people.

        Raises:
            BackupError: it cannot be loaded; the dump stays.
        """
        if not self.dump.exists():
            raise BackupError(f"there is no dump to load: {self.dump} is not there.")
        self.output(SYSTEMCTL, "start", f"{POSTGRES}.service")
        with self.dump.open("rb") as stream:
            options = ("--no-owner", "--role=mlflow", "--single-transaction", "--exit-on-error", *POSTGRES_LOGIN)
            result = self.run(DOCKER, "exec", "--interactive", POSTGRES, "pg_restore", *options, stdin=stream)
        if result.returncode != 0:
            raise BackupError(
                f"the dump cannot be loaded into PostgreSQL: {_said(result)}\nAll else is restored. "
                f"When PostgreSQL is in order: {Path(sys.argv[0])} load"
            )
        self.dump.unlink()
        return "The database was loaded into PostgreSQL."


def _owner(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"uid": status.st_uid, "gid": status.st_gid, "mode": status.st_mode & 0o7777}


def _own(path: Path, owner: dict[str, Any]) -> None:
    os.chown(path, owner["uid"], owner["gid"])
    path.chmod(owner["mode"])


def _said(result: subprocess.CompletedProcess[bytes]) -> str:
    return (result.stderr or result.stdout or b"").decode(errors="replace").strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program."""
    parser = argparse.ArgumentParser(description="Back up and restore an appliance.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("backup", help="take a snapshot, forget old ones, check the repository")
    for name, text in (("look", "say what a snapshot would bring back"), ("restore", "bring a snapshot back")):
        commands.add_parser(name, help=text).add_argument("snapshot", nargs="?", default="latest")
    commands.add_parser("load", help="load the database that a restore could not load into PostgreSQL")
    chosen = parser.parse_args(arguments)
    try:
        appliance = Appliance()
        if chosen.command == "backup":
            said = appliance.back_up()
        elif chosen.command == "look":
            said = json.dumps(appliance.look(chosen.snapshot))
        elif chosen.command == "restore":
            said = appliance.restore(chosen.snapshot)
        else:
            said = appliance.load()
    except (BackupError, OSError, sqlite3.Error) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
