"""Configuration from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_server.common import settings as module
from model_server.common.model_uri import ModelUri
from model_server.common.settings import Settings, SettingsError


def test_defaults(tmp_path: Path) -> None:
    settings = Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path)})
    assert (settings.model, settings.port) == (ModelUri("code-search", alias="champion"), 8000)
    assert settings.workers == module.available_cores()


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    assert Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path), "SERVING_PORT": " "}).port == 8000


def test_a_uri_goes_before_name_and_alias(tmp_path: Path) -> None:
    environment = {"MODEL_DIRECTORY": str(tmp_path), "MODEL_NAME": "wine", "MODEL_ALIAS": "challenger"}
    assert str(Settings.from_environment(environment).model) == "models:/wine@challenger"
    assert str(Settings.from_environment({**environment, "MODEL_URI": "models:/tea/3"}).model) == "models:/tea/3"


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("models:/wine@challenger", ModelUri("wine", alias="challenger")),
        ("models:/wine/3", ModelUri("wine", version="3")),
        ("models:/wine/latest", ModelUri("wine", alias="latest")),
        ("models:/wine/Latest", ModelUri("wine", alias="latest")),
        ("models:/a wine of ours/12", ModelUri("a wine of ours", version="12")),
    ],
)
def test_uris_are_read_as_mlflow_reads_them(text: str, model: ModelUri) -> None:
    assert ModelUri.parse(text) == model


@pytest.mark.parametrize(
    "text",
    [
        *("wine", "models:/", "models:/wine", "models:/wine/", "models:/wine@", "models:/wine@a/3", "models:/wine/3/4"),
        *("models:/../3", "runs:/0123/model", "models:/wine@champion@x", "models:wine/3", "models:/wine/3@champion"),
    ],
)
def test_other_uris_are_refused_with_those_that_are_not(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^MODEL_URI='.*' cannot be used: give models:/NAME@ALIAS, "):
        Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path), "MODEL_URI": text})


def test_a_stage_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'Production' is no version; MLflow has no stages any more"):
        Settings.from_environment({"MODEL_DIRECTORY": str(tmp_path), "MODEL_URI": "models:/wine/Production"})


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


def test_a_signature_is_required_only_with_a_key_to_check_it(tmp_path: Path) -> None:
    environment = {"MODEL_DIRECTORY": str(tmp_path), "SERVING_REQUIRE_SIGNATURE": "true"}
    with pytest.raises(
        SettingsError, match=r"^SERVING_REQUIRE_SIGNATURE=true takes a public key: SERVING_SIGNING_KEY "
    ):
        Settings.from_environment(environment)
    key = tmp_path / "key.pub"
    for content, said in ((None, "it cannot be read"), ("PRIVATE KEY", "it has no public key; name a PEM file")):
        if content is not None:
            key.write_text(content)
        with pytest.raises(SettingsError, match=f"^SERVING_SIGNING_KEY='.*key.pub' cannot be used: {said}"):
            Settings.from_environment({**environment, "SERVING_SIGNING_KEY": str(key)})
    key.write_text("-----BEGIN PUBLIC KEY-----\n")
    settings = Settings.from_environment({**environment, "SERVING_SIGNING_KEY": str(key)})
    assert (settings.require_signature, settings.signing_key) == (True, key)
