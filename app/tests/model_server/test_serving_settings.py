"""Configuration from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_server.common import settings as module
from model_server.common.settings import Settings, SettingsError


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path)})
    assert (settings.model_name, settings.model_alias, settings.port) == ("code-search", "champion", 8000)
    assert settings.workers == module.available_cores()


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path), "SERVING_PORT": " "}).port == 8000


def test_a_directory_that_cannot_be_written_names_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "access", lambda *_: False)
    with pytest.raises(SettingsError, match=r"MODEL_DIRECTORY='.*' cannot be used: user \d+ may not write there"):
        Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path)})


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_containers_cpu_quota_is_read_from_both_versions_of_cgroups(
    files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert module._cpu_quota(tmp_path) == quota
