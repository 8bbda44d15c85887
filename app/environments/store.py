"""Environments on a volume.

Layout below the directory::

    <digest>/        an environment; the time of its directory is when it was last used
    .cache/          uv's cache: files of environments are hard links to its own
    .making/         what is under way, or died
    .answers/        what was answered to a request, so that the next needs neither resolution nor network
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import NormalizedName, canonicalize_name

from environments.requirements import Refused

IN_USE_SECONDS = 600.0
"""So long after it was last used no environment is removed."""
_DIGEST = re.compile(r"[0-9a-f]{32}")


class Store:
    """The environments below ``root``; one thread writes, others read.

    Args:
        root: the volume.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cache = root / ".cache"
        self._making = root / ".making"
        self._answers = root / ".answers"

    def clean(self) -> None:
        """Remove what was under way when the service died."""
        shutil.rmtree(self._making, ignore_errors=True)
        for directory in (self.cache, self._making, self._answers):
            directory.mkdir(exist_ok=True)
        self._clean_cache()
        self.prune_cache()

    # --- environments ---

    def names(self) -> list[str]:
        """Digests of the environments, the least recently used first."""
        found = [entry for entry in self.root.iterdir() if _DIGEST.fullmatch(entry.name)]
        return [entry.name for entry in sorted(found, key=lambda entry: entry.stat().st_mtime)]

    def has(self, digest: str) -> bool:
        """Whether there is such an environment."""
        return bool(_DIGEST.fullmatch(digest)) and (self.root / digest / "bin" / "python").exists()

    def packages(self, digest: str, names: set[NormalizedName]) -> list[Path]:
        """The directories that packages of an environment are in, as far as their own lists tell.

        Args:
            digest: of the environment.
            names: of the packages, normalized.
        """
        found = set[Path]()
        for libraries in (self.root / digest / "lib").glob("python*/site-packages"):
            for package in metadata.distributions(path=[str(libraries)]):
                # A wheel may have anything in its lists.
                with contextlib.suppress(Exception):
                    if canonicalize_name(package.name) in names:
                        tops = {file.parts[0] for file in package.files or () if file.suffix == ".py"}
                        found |= {libraries / top for top in tops if top.isidentifier()}
        return sorted(found)

    def share_bytecode(self, digest: str) -> None:
        """Put an environment's bytecode beside the sources in uv's cache: what is linked from there later has it."""
        for libraries in (self.root / digest / "lib").glob("python*/site-packages"):
            for source in (self.cache / "archive-v0").glob("*/**/*.py"):
                place = Path(*source.relative_to(self.cache).parts[2:])
                # Wheels may have files of the same name.
                with contextlib.suppress(OSError):
                    if source.samefile(libraries / place):
                        for bytecode in (libraries / place).parent.glob(f"__pycache__/{source.stem}.*.pyc"):
                            shared = source.parent / "__pycache__" / bytecode.name
                            shared.parent.mkdir(exist_ok=True)
                            shared.hardlink_to(bytecode)

    def use(self, digest: str) -> bool:
        """Note that an environment is used now; false where there is none."""
        try:
            if _DIGEST.fullmatch(digest):
                os.utime(self.root / digest)
                return True
        except FileNotFoundError:
            pass
        return False

    def stage(self) -> Path:
        """An empty directory to make an environment in."""
        place = self._making / "environment"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def commit(self, place: Path, digest: str) -> None:
        """Make what is complete an environment: on disk first, then by a rename, so half a one is never found."""
        subprocess.run(["sync", "--file-system", str(place)], check=True)
        os.utime(place)
        place.rename(self.root / digest)

    def discard(self) -> None:
        """Remove what was being made, but for the packages that came for it: the next try has them."""
        for entry in self._making.iterdir():
            shutil.rmtree(entry, ignore_errors=True)
        self._clean_cache()

    # --- answers ---

    def remember(self, key: str, answer: dict[str, Any]) -> None:
        """Keep the answer to a request."""
        temporary = self._making / f"{key}.json"
        temporary.write_text(json.dumps(answer))
        temporary.rename(self._answers / f"{key}.json")

    def remembered(self, key: str) -> dict[str, Any] | None:
        """The answer to a request whose environment is there."""
        try:
            answer: dict[str, Any] = json.loads((self._answers / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return answer if self.use(answer["environment"]) else None

    # --- room ---

    def size(self) -> int:
        """Bytes on disk, a file with many hard links once."""
        done = subprocess.run(
            ["du", "--summarize", "--block-size=1", str(self.root)], capture_output=True, text=True, check=False
        )
        # Files that go while it looks make it fail, and its sum is right all the same.
        return int(done.stdout.split()[0])

    def keep_below(self, quota: int) -> None:
        """Remove what is used least until the volume is below its quota.

        Args:
            quota: in bytes.

        Raises:
            Refused: when what is in use takes more.
        """
        if self._make_room(quota) > quota:
            raise Refused(
                "quota",
                f"with it, what is in use takes more than environments_quota={quota} bytes; name fewer packages, or "
                "set environments_quota to more",
            )

    def _make_room(self, quota: int) -> int:
        """Remove what is used least and not in use, and return the bytes that are left."""
        size = self.size()
        for digest in self.names():
            if size <= quota:
                return size
            if time.time() - (self.root / digest).stat().st_mtime > IN_USE_SECONDS:
                self._remove(digest)
                self.prune_cache()
                size = self.size()
        if size > quota:
            self.prune_cache()
            size = self.size()
        return size

    def _remove(self, digest: str) -> None:
        # Under another name first: nobody finds half of it.
        gone = self._making / f"{digest}.removed"
        (self.root / digest).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        for path in self._answers.iterdir():
            if digest in path.read_text():
                path.unlink()

    def prune_cache(self) -> None:
        """Remove the packages in uv's cache that no environment has."""
        for archive in (self.cache / "archive-v0").glob("*"):
            if all(
                path.stat().st_nlink == 1 for path in archive.rglob("*") if path.is_file() and not path.is_symlink()
            ):
                shutil.rmtree(archive, ignore_errors=True)

    def _clean_cache(self) -> None:
        """Remove what uv leaves when it is killed."""
        for pattern in (".tmp*", "*/.tmp*"):
            for path in self.cache.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
                path.unlink(missing_ok=True)
