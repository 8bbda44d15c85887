"""Model versions on the server's own disk, so that it serves without MLflow and across restarts.

Layout below the model directory::

    <model name>/current                     the directory name of the version that was last good
    <model name>/<version>-<created>/        one version: model/ (the MLflow model) and version.json
    <model name>/<version>-<created>.tmp/    a download that is under way, or died
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

VERSIONS_KEPT = 3
_CURRENT = "current"
_STAGING_SUFFIX = ".tmp"


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model, as the registry knows it."""

    name: str
    version: str
    created: int
    """When the registry created it, in milliseconds: tells a version 1 from that of a deleted namesake."""
    run_id: str
    source: str

    @property
    def directory_name(self) -> str:
        """Where the store keeps it."""
        return f"{self.version}-{self.created}"

    @property
    def uri(self) -> str:
        """The URI by which MLflow's client downloads it."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class StoredModel:
    """A version together with the directory it lies in."""

    version: ModelVersion
    directory: Path

    @property
    def model_path(self) -> Path:
        """The directory with the ``MLmodel`` file."""
        return self.directory / "model"

    @classmethod
    def read(cls, directory: Path) -> StoredModel:
        """Raises: OSError, ValueError, TypeError or KeyError where it is not a complete version."""
        version = ModelVersion(**json.loads((directory / "version.json").read_text()))
        if not (directory / "model" / "MLmodel").is_file():
            raise ValueError(f"{directory} has no MLmodel")
        return cls(version, directory)


class ModelStore:
    """The versions of one registered model below ``root``."""

    def __init__(self, root: Path, name: str) -> None:
        self._root = root / name
        self._root.mkdir(exist_ok=True)

    def find(self, version: ModelVersion) -> StoredModel | None:
        """The stored copy of ``version``, or None."""
        return _read_or_none(self._root / version.directory_name)

    def candidates(self) -> list[StoredModel]:
        """What can be served, best first: the version that was last good, then the others from the newest."""
        try:
            current = (self._root / _CURRENT).read_text().strip()
        except OSError:
            current = ""
        directories = [entry for entry in self._root.iterdir() if entry.is_dir() and entry.suffix != _STAGING_SUFFIX]
        stored = [model for directory in directories if (model := _read_or_none(directory))]
        return sorted(stored, key=lambda m: (m.directory.name == current, m.version.created), reverse=True)

    def stage(self, version: ModelVersion) -> Path:
        """An empty directory to download ``version`` into; :meth:`commit` or :meth:`discard` it."""
        staging = self._root / (version.directory_name + _STAGING_SUFFIX)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        return staging

    def commit(self, version: ModelVersion, staging: Path) -> StoredModel:
        """Make a complete download a stored version: a rename, so half a model is never found."""
        (staging / "version.json").write_text(json.dumps(asdict(version), indent=2) + "\n")
        StoredModel.read(staging)
        _sync_tree(staging)
        directory = self._root / version.directory_name
        shutil.rmtree(directory, ignore_errors=True)
        staging.rename(directory)
        _sync(self._root)
        return StoredModel(version, directory)

    def discard(self, staging: Path) -> None:
        """Remove a download that failed."""
        shutil.rmtree(staging, ignore_errors=True)

    def set_current(self, model: StoredModel) -> None:
        """Remember ``model`` as the one to start with, and remove the oldest versions beyond the few kept."""
        temporary = self._root / (_CURRENT + _STAGING_SUFFIX)
        temporary.write_text(model.directory.name + "\n")
        temporary.rename(self._root / _CURRENT)
        for old in self.candidates()[VERSIONS_KEPT:]:
            shutil.rmtree(old.directory, ignore_errors=True)


def _read_or_none(directory: Path) -> StoredModel | None:
    try:
        return StoredModel.read(directory)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            _sync(Path(directory, name))
        _sync(Path(directory))
