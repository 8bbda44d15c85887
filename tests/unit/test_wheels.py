"""The wheels of an environment are had for another machine than this one, or it is said why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parents[2] / "playbooks" / "files" / "wheels.py"


def ask(directory: Path, requirements: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    told: dict[str, Any] = {
        "asked": {"requirements": requirements, "with": ["packaging>=24"]},
        "python": "3.13",
        "machine": "aarch64",
    }
    return subprocess.run(
        [sys.executable, PROGRAM, directory],
        input=json.dumps(told),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheels_are_of_the_hosts_python_and_machine_and_had_once(tmp_path: Path) -> None:
    first = ask(tmp_path / "wheels", ["markupsafe==3.0.2"])
    assert first.returncode == 0, first.stderr
    names = sorted(file.name for file in (tmp_path / "wheels").glob("*.whl"))
    assert [name.split("-")[0] for name in names] == ["MarkupSafe", "packaging"]
    assert "-cp313-" in names[0]
    assert "aarch64" in names[0]
    assert first.stdout.splitlines() == [f"got: {name}" for name in names]
    again = ask(tmp_path / "wheels", ["markupsafe==3.0.2"])
    assert (again.returncode, again.stdout) == (0, "")


def test_a_version_that_there_is_not_is_named(tmp_path: Path) -> None:
    done = ask(tmp_path, ["markupsafe==99.0"])
    assert done.returncode == 1
    assert "markupsafe==99.0" in done.stderr


def test_a_package_that_has_no_wheel_is_named(tmp_path: Path) -> None:
    # Of this old version the index has only wheels of old Pythons, and a source.
    done = ask(tmp_path, ["markupsafe==2.0.1"])
    assert done.returncode == 1
    assert "markupsafe" in done.stderr.lower()


def test_what_the_service_would_refuse_is_refused_before(tmp_path: Path) -> None:
    done = ask(tmp_path, ["--index-url=http://127.0.0.1:9/"])
    assert done.returncode == 1
    assert "--index-url" in done.stderr


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    done = ask(
        tmp_path,
        ["markupsafe==3.0.2"],
        UV_DEFAULT_INDEX="http://127.0.0.1:9/simple",
        UV_NO_CONFIG="1",
        UV_NO_CACHE="1",
        UV_INDEX="",
        UV_FIND_LINKS="",
        UV_HTTP_RETRIES="0",
    )
    assert done.returncode == 1
    assert "127.0.0.1:9" in done.stderr
