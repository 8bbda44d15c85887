"""Backups on another machine that takes snapshots and gives none up, whatever root of the appliance's host tries."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import PlaybookRun, run_playbook
from testinfra.host import Host

PASSWORD = "basalt-fennel-orbit-38"
CERTIFICATE = "/root/backup-server.crt"
# As docs/backup.md has it; the unit of the package would do the last line.
INSTALL = """
set -e
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    restic restic-rest-server apache2-utils openssl >/dev/null
cd /etc/restic-rest-server
htpasswd -iBc users.htpasswd mlops
install -d -o restic-rest-server -g restic-rest-server -m 0700 /srv/restic
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout tls.key -out tls.crt \
    -subj /CN=backup -addext subjectAltName=IP:$1 2>/dev/null
chgrp restic-rest-server tls.key users.htpasswd && chmod 0640 tls.key users.htpasswd
cat >/etc/default/restic-rest-server <<'END'
LISTEN=:8000
BACKUP_DIR=/srv/restic
ARGS="--append-only --private-repos --htpasswd-file /etc/restic-rest-server/users.htpasswd
      --tls --tls-cert /etc/restic-rest-server/tls.crt --tls-key /etc/restic-rest-server/tls.key"
END
"""
SERVE = """
. /etc/default/restic-rest-server
exec runuser -u restic-rest-server -- restic-rest-server --path $BACKUP_DIR --listen $LISTEN $ARGS
"""
# Everything that the protocol has to take something away or to write over it, with all that the host knows.
ATTACK = """
import base64, json, pathlib, ssl, sys, urllib.error, urllib.request

url, certificate = sys.argv[1:]
secrets = pathlib.Path("/etc/mlops/secrets")
lines = (secrets / "backup_environment").read_text().splitlines()
known = dict(line.split("=", 1) for line in lines if "=" in line)
login = f"{known['RESTIC_REST_USERNAME']}:{known['RESTIC_REST_PASSWORD']}".encode()
headers = {"Authorization": "Basic " + base64.b64encode(login).decode()}
context = ssl.create_default_context(cafile=certificate)

def ask(method, path, body=None):
    request = urllib.request.Request(url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""

answers = {}
for kind in ("data", "index", "keys", "snapshots"):
    names = json.loads(ask("GET", f"mlops/{kind}/")[1])
    answers[f"{kind} there"] = len(names)
    for name in names:
        answers[f"delete {kind}"] = ask("DELETE", f"mlops/{kind}/{name}")[0]
        answers[f"overwrite {kind}"] = ask("POST", f"mlops/{kind}/{name}", b"nothing")[0]
answers["delete config"] = ask("DELETE", "mlops/config")[0]
answers["overwrite config"] = ask("POST", "mlops/config", b"nothing")[0]
answers["delete all"] = ask("DELETE", "mlops/")[0]
answers["another's"] = ask("GET", "other/config")[0]
print(json.dumps(answers))
"""


class Repository(NamedTuple):
    """A machine with nothing but a repository: its container, and the address that the appliance knows."""

    machine: str
    url: str

    def run(self, script: str, *arguments: str, stdin: str = "") -> str:
        command = ["docker", "exec", "--interactive", self.machine, "sh", "-c", script, "sh", *arguments]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def restic(self, password: str, arguments: str) -> str:
        """What restic says on that machine, to its operator who has the repository's password."""
        script = f"read -r RESTIC_PASSWORD && export RESTIC_PASSWORD && restic --repo=/srv/restic/mlops {arguments}"
        return self.run(f"exec runuser -u restic-rest-server -- sh -c '{script}'", stdin=f"{password}\n")


@pytest.fixture(scope="module")
def repository(host: Host, settings: dict[str, Any]) -> Iterator[Repository]:
    """A second target beside the appliance's, which a network has between them."""

    def docker(*arguments: str) -> str:
        return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()

    image = docker("inspect", "--format={{.Config.Image}}", settings["local_host_name"])
    machine = docker("run", "--detach", "--rm", "--entrypoint=sleep", image, "1800")
    try:
        address = docker("inspect", "--format={{.NetworkSettings.Networks.bridge.IPAddress}}", machine)
        made = Repository(machine, f"https://{address}:8000/")
        made.run(INSTALL, address, stdin=PASSWORD)
        docker("exec", "--detach", machine, "sh", "-c", SERVE)
        certificate = made.run("cat /etc/restic-rest-server/tls.crt")
        host.check_output(f"cat >{CERTIFICATE} <<'END'\n{certificate}END")
        yield made
    finally:
        docker("rm", "--force", machine)
        host.check_output(f"rm --force {CERTIFICATE}")


@pytest.fixture(scope="module")
def backups(host: Host, repository: Repository) -> Iterator[list[PlaybookRun]]:
    """Two backups in that repository; afterwards they go where they went before."""
    login = {"RESTIC_REST_USERNAME": "mlops", "RESTIC_REST_PASSWORD": PASSWORD, "RESTIC_CACERT": CERTIFICATE}
    variables = {
        "backup_repository": f"rest:{repository.url}mlops/",
        "backup_environment": "".join(f"{name}={value}\n" for name, value in login.items()),
    }
    former = host.check_output("cat /var/lib/mlops/backup-repository 2>/dev/null || true")
    result = run_playbook("site.yml", "--tags", "dev", "--extra-vars", json.dumps(variables))
    assert result.status == 0, result.output
    yield [run_playbook("playbooks/backup.yml") for _ in range(2)]
    assert run_playbook("site.yml", "--tags", "dev").status == 0
    host.check_output(f"printf %s '{former}' >/var/lib/mlops/backup-repository")


@pytest.fixture
def password(host: Host) -> str:
    """The repository's, of which the operator has a copy."""
    return host.check_output("cat /etc/mlops/secrets/restic_password").strip()


def snapshots(repository: Repository, password: str) -> list[str]:
    return [item["id"] for item in json.loads(repository.restic(password, "snapshots --json"))]


def test_backups_go_there_and_can_be_restored(host: Host, backups: list[PlaybookRun]) -> None:
    for backup in backups:
        assert backup.status == 0, backup.output
        assert PASSWORD not in backup.output
    found = json.loads(host.check_output("/usr/local/lib/mlops/appliance-backup look"))
    assert found["store"] == "sqlite"


@pytest.mark.usefixtures("backups")
def test_root_of_the_host_takes_nothing_away(host: Host, repository: Repository, password: str) -> None:
    before = snapshots(repository, password)
    assert len(before) == 2
    script = f"python3 - {repository.url} {CERTIFICATE} <<'END'\n{ATTACK}\nEND"
    answers = json.loads(host.check_output(script))
    there = {name: count for name, count in answers.items() if name.endswith(" there")}
    assert all(there.values()), f"there is something to take: {there}"
    refused = {name: status for name, status in answers.items() if name not in there}
    assert set(refused.values()) <= {401, 403, 405}, refused
    assert snapshots(repository, password) == before
    assert "no errors were found" in repository.restic(password, "check --read-data")


@pytest.mark.usefixtures("backups")
def test_what_the_host_would_forget_stays_until_it_is_forgotten_there(
    host: Host, repository: Repository, password: str
) -> None:
    restic = (
        f"set -a && . /etc/mlops/secrets/backup_environment && RESTIC_REPOSITORY=rest:{repository.url}mlops/ "
        "RESTIC_PASSWORD_FILE=/etc/mlops/secrets/restic_password && restic"
    )
    name = json.loads(host.check_output("cat /etc/mlops/backup/backup.json"))["host"]
    for hour in ("08", "09", "10"):
        moment = f"2026-01-02 {hour}:00:00"
        host.check_output(f"{restic} backup --quiet --tag mlops --host {name} --time '{moment}' /etc/hostname")
    again = run_playbook("playbooks/backup.yml")
    assert again.status == 0, again.output
    assert "It is append-only: of the snapshots to forget 1 stayed." in again.output
    assert len(snapshots(repository, password)) == 6
    repository.restic(password, "forget --tag mlops --group-by host --keep-within 3d --keep-daily 7 --prune")
    assert len(snapshots(repository, password)) == 5
