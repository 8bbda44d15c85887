"""What of a project travels to the host, and that the same project is the same archive."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from conftest import load_plugin

projects = load_plugin("filter/projects.py")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("MLproject", "train.py", "lib/code.py", ".git/config", "lib/__pycache__/code.pyc"):
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "project" / "train.py").chmod(0o700)
    return tmp_path / "project"


def test_it_holds_the_files_and_last_the_sign_that_it_is_whole(project: Path) -> None:
    with tarfile.open(projects.project_archive(str(project))["path"]) as archive:
        modes = {member.name: oct(member.mode) for member in archive}
    assert list(modes) == ["project/MLproject", "project/lib/code.py", "project/train.py", "complete"]
    assert modes["project/train.py"] == "0o755"
    assert modes["project/MLproject"] == "0o644"


def test_its_digest_follows_from_what_is_in_it_alone(project: Path) -> None:
    before = projects.project_archive(str(project))["digest"]
    os.utime(project / "train.py", (1, 1))
    (project / ".git" / "config").write_text("another")
    assert projects.project_archive(str(project))["digest"] == before
    (project / "train.py").write_text("another")
    assert projects.project_archive(str(project))["digest"] != before


def test_data_are_refused(project: Path) -> None:
    with (project / "table.csv").open("wb") as file:
        file.truncate(101 << 20)
    with pytest.raises(AnsibleFilterError, match=r"more than 100: .*training_data"):
        projects.project_archive(str(project))


def test_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match="is no directory"):
        projects.project_archive(str(tmp_path / "missing"))
