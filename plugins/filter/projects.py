# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""The filter that packs a training project for its way to the host."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible.constants import DEFAULT_LOCAL_TMP
from ansible.errors import AnsibleFilterError

# Left behind by tools, and never part of a project.
IGNORED = frozenset({".git", ".venv", "__pycache__", ".ipynb_checkpoints", "mlruns"})
MAX_MB = 100


def project_archive(project: str) -> dict[str, str]:
    """Pack a project, because one archive travels faster than many files.

    Args:
        project: directory of the controller.

    Returns:
        ``path`` of a gzip-compressed tar archive on the controller, which Ansible removes when it ends, and its
        ``digest``. In it are the project's files under ``project/``, and last an empty file ``complete``.

    Raises:
        AnsibleFilterError: it is no directory, or larger than code is.
    """
    root = Path(project).expanduser()
    if not root.is_dir():
        raise AnsibleFilterError(f"training_project: {root} is no directory.")
    files = sorted(
        path for path in root.rglob("*") if path.is_file() and not IGNORED.intersection(path.relative_to(root).parts)
    )
    size_mb = sum(path.stat().st_size for path in files) >> 20
    if size_mb > MAX_MB:
        raise AnsibleFilterError(
            f"training_project: {root} has {size_mb} MB, more than {MAX_MB}: keep data out of it, in a directory of "
            "the host that training_data names."
        )
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path in files:
            member = tarfile.TarInfo(f"project/{path.relative_to(root)}")
            content = path.read_bytes()
            member.size = len(content)
            member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            archive.addfile(member, io.BytesIO(content))
        archive.addfile(tarfile.TarInfo("complete"))
    packed = gzip.compress(stream.getvalue(), mtime=0)
    digest = hashlib.sha256(packed).hexdigest()
    target = Path(DEFAULT_LOCAL_TMP) / f"project-{digest}.tar.gz"
    target.write_bytes(packed)
    return {"path": str(target), "digest": digest}


class FilterModule:
    """What Ansible looks for in a filter plugin."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"project_archive": project_archive}
