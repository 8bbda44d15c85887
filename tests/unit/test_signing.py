"""The script that signs on the host: when it signs, with which image, and what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "roles" / "serving" / "files" / "signing"
# Answers as the docker command would, and notes how it was called and what was there for the container.
DOCKER = """#!/bin/sh
case "$1" in
  exec) cat "$HOST/served" 2>/dev/null; exit ;;
  inspect) case "$*" in
      *Config.Env*) printf 'A=b\\nSERVING_REQUIRE_SIGNATURE=%s\\n' "$(cat "$HOST/strict" 2>/dev/null)" ;;
      *) [ ! -e "$HOST/gone" ] || exit 1; echo image-of-the-server ;;
    esac ;;
  run) echo "$*" >>"$HOST/calls"; stat -c '%a %n' "$HOST"/run/mlops/signing/* "$HOST"/run/mlops/signing/.mlflow/* \\
         >"$HOST/given"; echo "signed: version 3 of m"; exit "${STATUS:-0}" ;;
esac
"""


@dataclass
class FakeHost:
    """A host in a directory."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        text = SCRIPT.read_text().replace("/etc/mlops", f"{self.root}/etc/mlops")
        text = text.replace("/run/mlops", f"{self.root}/run/mlops").replace("user=10012", f"user={os.getuid()}")
        path = f"{self.root}/bin:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "HOST": str(self.root),
            "SIGNING_ADDRESS": "02:00",
            **self.environment,
        }
        return subprocess.run(
            ["sh", "-c", text, "signing", *arguments], capture_output=True, text=True, env=environment, check=False
        )

    def provide(self, required: str) -> str:
        """Provide the key as the role does, and have the model server trust it from then on."""
        result = self.run("provide", required)
        assert result.returncode == 0, result.stderr
        (self.root / "etc/mlops/serving/model_signing_key.pub").write_text(result.stdout)
        return result.stdout

    def serve(self, **answer: object) -> None:
        (self.root / "served").write_text(json.dumps({"name": "a model", "version": "3", **answer}))

    @property
    def calls(self) -> list[str]:
        """How containers were started, from the image on."""
        calls = self.root / "calls"
        return [line.rpartition("mlflow:5000 ")[2] for line in calls.read_text().splitlines()] if calls.exists() else []

    @property
    def key(self) -> Path:
        return self.root / "etc/mlops/secrets/model_signing_key"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    for directory in ("etc/mlops/secrets", "etc/mlops/serving", "run", "bin"):
        (tmp_path / directory).mkdir(parents=True)
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    return FakeHost(tmp_path, {"SIGNING_IMAGE": "the-new-image"})


def test_a_key_is_made_once_for_root_alone_and_only_its_public_part_is_shown(host: FakeHost) -> None:
    first = host.run("provide", "true")
    assert first.stderr == f"made: {host.key}\n"
    assert first.stdout.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert "PRIVATE" not in first.stdout
    assert host.key.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in host.key.parent.iterdir()] == [host.key.name]
    second = host.run("provide", "true")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert host.calls == [], "nothing is served"


def test_a_look_makes_nothing(host: FakeHost) -> None:
    assert host.run("public").stdout == ""
    assert not host.key.exists()
    shown = host.provide("false")
    assert host.run("public").stdout == shown


def test_what_is_served_is_signed_before_only_signed_versions_are_served(host: FakeHost) -> None:
    host.serve()
    host.provide("false")
    assert host.calls == []
    host.environment["STATUS"] = "1"
    assert host.run("provide", "true").returncode == 1, "the model server stays as it is"
    host.environment["STATUS"] = "0"
    (host.root / "calls").unlink()
    host.provide("true")
    assert host.calls == [
        "the-new-image python -m model_server.promote --key=/run/signing/key models:/a model/3",
    ]
    host.serve(signed=True)
    host.provide("true")
    assert len(host.calls) == 1, "once"


def test_code_of_a_model_does_not_have_the_host_sign_what_it_names(host: FakeHost) -> None:
    host.provide("true")
    # As systemd_container gives it.
    (host.root / "strict").write_text("True")
    host.serve(signed=False, name="another", version="7")
    host.provide("true")
    assert host.calls == [], "a server that takes signed versions only serves no other"


def test_without_a_model_server_there_is_no_image_to_sign_with(host: FakeHost) -> None:
    host.provide("true")
    del host.environment["SIGNING_IMAGE"]
    (host.root / "gone").touch()
    assert host.run("promote", "models:/m/3").returncode != 0
    assert host.calls == []


@pytest.mark.parametrize("required", ["true", "false"])
def test_another_key_signs_what_the_former_one_has_signed(host: FakeHost, required: str) -> None:
    host.provide(required)
    host.serve(signed=True)
    host.key.unlink()
    host.environment["STATUS"] = "1"
    assert host.run("provide", required).returncode == 1, "the model server does not get a key that fits nothing"
    host.environment["STATUS"] = "0"
    host.provide(required)
    keys = "--signed-by=/run/signing/present.pub --signed-by=/run/signing/former.pub"
    assert [call.partition("/run/signing/key ")[2] for call in host.calls] == [f"{keys} models:/a model/3"] * 2
    host.provide(required)
    assert len(host.calls) == 2


def test_a_promotion_has_the_key_and_the_account_for_its_time_only(host: FakeHost) -> None:
    host.provide("true")
    (host.key.parent / "mlflow_release_credentials").write_text("[mlflow]\n")
    del host.environment["SIGNING_IMAGE"]
    result = host.run("promote", "--alias=champion", "models:/m/3")
    assert (result.returncode, result.stdout) == (0, "signed: version 3 of m\n")
    assert host.calls == [
        "image-of-the-server python -m model_server.promote --key=/run/signing/key --alias=champion models:/m/3"
    ]
    given = [line.split() for line in (host.root / "given").read_text().splitlines()]
    assert {(mode, Path(name).name) for mode, name in given} == {
        ("400", "key"), ("400", "credentials"), ("444", "former.pub"), ("644", "present.pub"),
    }  # fmt: skip
    assert list((host.root / "run/mlops").iterdir()) == []
    host.environment["STATUS"] = "1"
    assert host.run("promote", "models:/m/3").returncode == 1
    assert list((host.root / "run/mlops").iterdir()) == []
