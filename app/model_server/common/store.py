"""Model versions on the server's own disk, so that it serves without MLflow and across restarts.

Layout below the model directory::

    <model name>/current                     the directory name of the version that was last good
    <model name>/<version>-<created>/        one version: model/, as MLflow has it, version.json, model.sig
    <model name>/<version>-<created>.environment.json
                                             the environment that was made for it
    <model name>/<version>-<created>.tmp/    a download that is under way, or died
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

VERSIONS_KEPT = 3
SIGNATURE = "model.sig"
"""The signature of a stored version."""
SIGNATURES = "model_signatures"
"""Where the registry has the signatures, among the model's files: versions may share them, each has one of its own."""
_CURRENT = "current"
_STAGING_SUFFIX = ".tmp"
_ENVIRONMENT_SUFFIX = ".environment.json"


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model, as the registry knows it.

    All of it is signed, as ``version.json``: with another field no former signature fits.
    """

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
    def signature_name(self) -> str:
        """Its file among the registry's signatures."""
        return f"{self.directory_name}.sig"

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

    @property
    def has_signature(self) -> bool:
        """Whether it came with one, right or wrong."""
        return (self.directory / SIGNATURE).is_file()

    @property
    def environment_path(self) -> Path:
        """The file that has its environment: beside what is signed."""
        return self.directory.with_name(self.directory.name + _ENVIRONMENT_SUFFIX)

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
        found = _read_or_none(self._root / version.directory_name)
        return found if found is not None and found.version == version else None

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
        # Out of the model: a signature is no part of what is signed, and nothing else goes unsigned.
        signatures = staging / "model" / SIGNATURES
        found = signatures / version.signature_name
        if found.is_file():
            found.rename(staging / SIGNATURE)
        shutil.rmtree(signatures, ignore_errors=True)
        _sync_tree(staging)
        stored = StoredModel(version, self._root / version.directory_name)
        self.remove(stored)
        staging.rename(stored.directory)
        _sync(self._root)
        return stored

    def discard(self, staging: Path) -> None:
        """Remove a download that failed."""
        shutil.rmtree(staging, ignore_errors=True)

    def remove(self, model: StoredModel) -> None:
        """Forget a version."""
        shutil.rmtree(model.directory, ignore_errors=True)
        model.environment_path.unlink(missing_ok=True)

    def is_current(self, model: StoredModel) -> bool:
        """Whether ``model`` is the version that was last good."""
        try:
            return (self._root / _CURRENT).read_text().strip() == model.directory.name
        except OSError:
            return False

    def set_current(self, model: StoredModel) -> None:
        """Remember ``model`` as the one to start with, and remove the oldest versions beyond the few kept."""
        temporary = self._root / (_CURRENT + _STAGING_SUFFIX)
        temporary.write_text(model.directory.name + "\n")
        temporary.rename(self._root / _CURRENT)
        for old in self.candidates()[VERSIONS_KEPT:]:
            self.remove(old)


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
