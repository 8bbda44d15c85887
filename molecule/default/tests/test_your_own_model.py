"""The page for those who bring a model, command by command as it stands there."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conftest import INVENTORY, ROOT, run_playbook
from testinfra.host import Host

PAGE = (ROOT / "docs" / "your-own-model.md").read_text()
# Nothing else of this machine has them.
LOCAL_PORTS = {"5000": "15911", "8080": "15912"}
TARGET = os.environ.get("MLOPS_TEST_TARGET", "mlops-molecule")


def blocks(language: str) -> list[str]:
    """The page's examples in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """The page's commands, in order."""
    return [line for block in blocks("sh") for line in block.splitlines()]


@pytest.fixture
def laptop(tmp_path: Path, host: Host, mlflow_url: str) -> Iterator[Path]:
    """A directory with the page's files; afterwards one model is served again, and this one is forgotten."""
    # This machine's own ports are the target's already, and MLflow answers to the names that it knows only.
    others = f"mlflow_allowed_hosts: ['127.0.0.1:{LOCAL_PORTS['5000']}']\ntraining_only_when_missing: true\n"
    (tmp_path / "iris.py").write_text(blocks("python")[0])
    (tmp_path / "models.yml").write_text(blocks("yaml")[0] + others)
    (tmp_path / "others.yml").write_text(others)
    result = run_playbook("site.yml", "--tags", "serve,train", "--extra-vars", f"@{tmp_path}/others.yml")
    assert result.status == 0, result.output
    yield tmp_path
    subprocess.run(["pkill", "-f", f"ssh .*-L {LOCAL_PORTS['5000']}:"], check=False)
    result = run_playbook("site.yml")
    requests.delete(f"{mlflow_url}/api/2.0/mlflow/registered-models/delete", json={"name": "iris"}, timeout=30)
    host.run("docker volume rm mlops_model_artifacts-iris")
    assert result.status == 0, result.output


def test_the_page_leads_from_a_laptop_to_an_answer(laptop: Path, mlflow_url: str, api_url: str) -> None:
    lines = command_lines()
    assert len(lines) <= 10
    configuration = ROOT / ".local" / TARGET / "ssh_config"
    ports = {"5000": mlflow_url.rpartition(":")[2], "8080": api_url.rpartition(":")[2]}
    script = ["set -euo pipefail"]
    for line in lines:
        here = line.replace("HOST", f"-F {configuration} {TARGET}")
        for port, local in LOCAL_PORTS.items():
            here = here.replace(f"{port}:127.0.0.1:{port}", f"{local}:127.0.0.1:{ports[port]}")
            here = here.replace(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{local}")
        if line.startswith("make "):
            here = here.replace("make ", f"make -C {ROOT} INVENTORY={INVENTORY} ").replace("@", f"@{laptop}/")
        script.append(here)
        if line.startswith("python3 -m venv"):
            # What the tests have is there already, so that nothing is downloaded for them.
            script.append(f"echo {site.getsitepackages()[0]} > $(echo mine/lib/python3.*/site-packages)/tests.pth")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=laptop,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert '{"predictions":[0]}' in done.stdout.replace(" ", ""), done.stdout
