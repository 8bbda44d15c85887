"""The script that gives nginx its certificate: what works is replaced by what is whole, or stays."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from conftest import load_plugin

SCRIPT = Path(__file__).parents[2] / "roles" / "nginx" / "files" / "use-certificate"
own = load_plugin("action/own_certificate.py")


class FakeHost:
    """A host in a directory, with a certificate that is shown and another pair."""

    def __init__(self, root: Path) -> None:
        self.programs = root / "bin"
        self.certificates = root / "etc/mlops/certificate"
        self.metrics = root / "var/lib/mlops/metrics"
        for directory in (self.programs, self.certificates, self.metrics):
            directory.mkdir(parents=True)
        own.provide(root / "ca", "web", ["web.example.org"], datetime.now(UTC))
        self.key, self.chain = root / "ca" / "web.key", root / "ca" / "web.crt"
        self.shown = self.certificates / "nginx.pem"
        self.shown.write_text("what works")
        self._text = SCRIPT.read_text().replace("/etc/mlops", f"{root}/etc/mlops")
        self._text = self._text.replace("/var/lib/mlops", f"{root}/var/lib/mlops")
        # Who runs the tests may not be root.
        self.program("chown", "exit 0")

    def program(self, name: str, text: str) -> None:
        (self.programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.programs / name).chmod(0o755)

    def run(self) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"}
        command = ["sh", "-c", self._text, "use-certificate", str(self.key), str(self.chain)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path)


def test_key_and_chain_are_shown_and_the_end_is_told(host: FakeHost) -> None:
    # As some are.
    host.chain.write_text(host.chain.read_text().rstrip("\n"))
    result = host.run()
    assert result.returncode == 0, result.stderr
    assert host.shown.read_text() == f"{host.chain.read_text()}\n{host.key.read_text()}"
    assert host.shown.stat().st_mode & 0o777 == 0o400
    assert 'end_timestamp_seconds{service="nginx"} ' in (host.metrics / "mlops_certificate.prom").read_text()
    assert [path.name for path in host.certificates.iterdir()] == ["nginx.pem"]


@pytest.mark.parametrize("name", ["crt", "key"])
def test_on_a_full_disk_what_works_stays(host: FakeHost, name: str) -> None:
    host.program("cat", f'case "$1" in *.{name}) echo full >&2; exit 1 ;; esac; exec /bin/cat "$@"')
    assert host.run().returncode != 0
    assert host.shown.read_text() == "what works"
    assert [path.name for path in host.certificates.iterdir()] == ["nginx.pem"], "no key is left beside it"
