"""The command, run as the container runs it: what an operator sees, and the exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DOCUMENTED = 'def read():\n    """Read all the rows."""\n'


def train(tracking_uri: str, corpus: Path, base_corpus: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRAINING_CORPUS": str(corpus),
        "TRAINING_BASE_CORPUS": str(base_corpus),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "PATH": "/usr/bin:/bin",
        "HOME": str(corpus.parent),
    }
    command = [sys.executable, "-m", "codesearch.train"]
    return subprocess.run(
        command, env=environment, cwd=corpus.parent, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    return directory


def assert_one_clear_error(result: subprocess.CompletedProcess[str], message: str) -> None:
    errors = [line for line in result.stdout.splitlines() if "ERROR: training failed: " in line]
    assert result.returncode == 1, result.stdout + result.stderr
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in result.stdout + result.stderr


def test_a_tracking_server_that_cannot_be_reached(corpus: Path, base_root: Path) -> None:
    (corpus / "module.py").write_text(DOCUMENTED)
    assert_one_clear_error(train("http://127.0.0.1:9", corpus, base_root), "MLflow at http://127.0.0.1:9: ")
