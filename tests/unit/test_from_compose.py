"""docs/from-compose.md has a row for everything that the Compose system had, and a test for every row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_documentation import all_settings, code_of

ROOT = Path(__file__).parents[2]
PAGE = "docs/from-compose.md"
TESTS = [path for folder in ("molecule", "tests", "app/tests") for path in (ROOT / folder).rglob("test_*.py")]

COMPOSE = "docker-compose -f docker-compose.yaml"
ARCHIVE = "alpine tar czf /backup/mlflow_backup.tar.gz -C /data ."
# What its description names, in its words.
THERE = {
    "Services": ["mlflow", "postgres", "train", "serve", "nginx", "prometheus", "grafana", "node-exporter"],
    "Profiles": [
        "docker-compose --profile dev up -d",
        "docker-compose --profile dev --profile postgres up -d",
        "docker-compose --profile train up",
        "docker-compose --profile serve up -d",
        "docker-compose --profile monitoring up -d",
        "docker-compose --profile full up -d",
    ],
    "Commands": [
        *("make dev", "make dev-postgres", "make dev-full", "make train", "make serve", "make monitoring"),
        *("make down", "make down-volumes", "make status", "make logs", "make logs-mlflow", "make logs-serve"),
        *("make docker-build", "make test-docker"),
        f"docker run --rm -v ml_ci_cd_mlflow_data:/data -v $(pwd):/backup {ARCHIVE}",
    ],
    "Variables": [
        *("MLFLOW_BACKEND_STORE_URI", "MLFLOW_DEFAULT_ARTIFACT_ROOT", "USE_POSTGRES"),
        *("POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD"),
        *("EXPERIMENT_NAME", "MODEL_NAME", "MODEL_URI"),
        *("GRAFANA_USER", "GRAFANA_PASSWORD"),
    ],
    "Ports": ["80", "8080", "5000", "9090", "3000", "5432"],
    "Endpoints": [
        *("http://localhost:5000", "http://localhost:9090", "http://localhost:3000"),
        *("http://localhost:80", "http://localhost:8080", "http://localhost:8080/invocations"),
        *("http://localhost:5000/health", "http://localhost/health", "http://localhost:8080/health"),
        *("localhost:5432", "/metrics"),
    ],
    "Volumes": [
        *("postgres_data", "mlflow_data", "mlflow_artifacts", "model_artifacts", "prometheus_data", "grafana_data"),
    ],
    "Monitoring, security, production": [
        *("ML Pipeline Monitoring", "System Metrics", "Application Metrics"),
        "Rate limiting on API endpoints",
        "Security headers (X-Frame-Options, X-XSS-Protection, etc.)",
        *("Gzip compression", "Health check endpoints"),
        "Use external PostgreSQL/MySQL for MLflow backend",
        "Use S3/GCS for artifact storage",
        "Scale serving containers with load balancer",
        "Monitor resource usage and set appropriate limits",
    ],
    "Troubleshooting": [
        *("make status", "make logs", f"{COMPOSE} restart mlflow"),
        *(f"{COMPOSE} logs postgres", f"{COMPOSE} exec postgres pg_isready -U mlflow"),
        *(f"{COMPOSE} logs train", f"{COMPOSE} run --rm train bash", f"{COMPOSE} ps"),
        *("curl http://localhost:5000/health", "curl http://localhost/health", "curl http://localhost:8080/health"),
    ],
}


def rows() -> Iterator[tuple[str, list[str]]]:
    """Every row of the page's tables: its section and its cells."""
    section = ""
    for line in (ROOT / PAGE).read_text().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("|") and not re.match(r"\|-|\| there ", line):
            yield section, [cell.strip() for cell in line.strip("|").split("|")]


ROWS = list(rows())


@pytest.mark.parametrize("section", THERE)
def test_everything_there_has_one_row(section: str) -> None:
    named = [cells[0].strip("`*") for at, cells in ROWS if at == section]
    assert [name for name in THERE[section] if named.count(name) != 1] == []


@pytest.mark.parametrize(("section", "cells"), ROWS, ids=[f"{section}: {cells[0]}" for section, cells in ROWS])
def test_every_row_names_tests_that_exist(section: str, cells: list[str]) -> None:
    assert re.fullmatch(r"`test_\w+\.py(::test_\w+)?`(, `test_\w+\.py(::test_\w+)?`)*", cells[-1])
    for name in re.findall(r"`([^`]+)`", cells[-1]):
        file, _, function = name.partition("::")
        texts = [path.read_text() for path in TESTS if path.name == file]
        assert texts, f"{section}: there is no {file}"
        assert any(f"def {function}" in text for text in texts), f"{section}: there is no {name}"


def test_every_setting_that_is_named_exists() -> None:
    text = re.sub(r"^\|[^|]*\|", "", (ROOT / PAGE).read_text(), flags=re.MULTILINE)
    # <service>_memory stands for one of each service.
    known = {one for name in all_settings() for one in (name, f"<service>_{name.partition('_')[2]}")}
    named = set(re.findall(r"`((?:<service>|[a-z]+)_[a-z_]+)`", text))
    assert named & known
    assert named - known == {f"mlops_{name}" for name in THERE["Volumes"]} | {"mlflow_password", "group_vars"}


def test_no_variable_is_named_that_was_not_there() -> None:
    assert set(re.findall(r"^[A-Z_]+$", code_of(PAGE), flags=re.MULTILINE)) == set(THERE["Variables"])
