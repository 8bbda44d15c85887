"""Certificates of an ACME server and of the own authority: first one, renewed under load, not renewed, ended."""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import container_ids, run_playbook, steady_client, wait_until
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from testinfra.host import Host

NAME = "mlops.example.org"
PEBBLE = "/run/pebble"
LINEAGE = "/var/lib/mlops/acme/live/localhost"
ASK = "import requests, sys; print(requests.get(sys.argv[1], timeout=9).text)"
RENEWAL = "systemctl start mlops-certificate.service"
# Let's Encrypt's own test server, which looks at the port where nginx is on this target.
PEBBLE_SETTINGS = {
    "listenAddress": "127.0.0.1:14000",
    "managementListenAddress": "127.0.0.1:14001",
    "certificate": f"{PEBBLE}/pebble.crt",
    "privateKey": f"{PEBBLE}/pebble.key",
    "tlsPort": 5001,
    "certificateValidityPeriod": 90 * 24 * 3600,
    "ocspResponderURL": "",
}


@pytest.fixture(scope="module", autouse=True)
def acme(host: Host, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Have nginx get its certificate from Pebble, and none afterwards; yields the settings for it."""
    host.check_output("apt-get update --quiet=2 && apt-get install --yes --quiet=2 --no-install-recommends pebble")
    wanted = {"pebble": {**PEBBLE_SETTINGS, "httpPort": int(settings["local_host_ui_port"])}}
    host.check_output(
        f"mkdir -p {PEBBLE} /run/systemd/system/mlops-certificate.service.d && cd {PEBBLE}"
        f" && echo '{json.dumps(wanted)}' > pebble.json"
        " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 10 -subj /CN=localhost"
        " -addext subjectAltName=DNS:localhost -keyout pebble.key -out pebble.crt 2>&1"
        f" && printf '[Service]\\nEnvironment=REQUESTS_CA_BUNDLE={PEBBLE}/pebble.crt\\n'"
        " > /run/systemd/system/mlops-certificate.service.d/pebble.conf"
    )
    start_pebble(host)
    gateway = host.check_output("docker network inspect bridge --format '{{(index .IPAM.Config 0).Gateway}}'")
    variables = {
        "nginx_tls": "acme",
        "nginx_acme_directory": "https://localhost:14000/dir",
        "mlops_server_names": [NAME, "localhost", "127.0.0.1"],
        # This machine, as the target sees it, and no container.
        "nginx_allowed_networks": [re.sub(r"\.\d+$", ".0/24", outer_address(host)), gateway],
        "nginx_api_tokens": True,
        "nginx_https_port": 443,
    }
    try:
        with_a_model = json.dumps({**variables, "training_only_when_missing": True})
        result = run_playbook("site.yml", "--tags", "serve,train", "--extra-vars", with_a_model)
        assert result.status == 0, result.output
        ready = "docker exec mlops-serving curl --silent --fail http://127.0.0.1:8000/ready"
        wait_until(lambda: host.run(ready).rc == 0, 60, "a model is served")
        yield variables
    finally:
        host.run("systemctl stop pebble pebble-dns")
        # The accounts of a Pebble are gone with it.
        host.run("rm -r /run/systemd/system/mlops-certificate.service.d /var/lib/mlops/acme /etc/mlops/tokens")
        result = run_playbook("site.yml", "--tags", "serve")
    assert result.status == 0, result.output
    assert not host.file("/var/lib/mlops/metrics/mlops_certificate.prom").exists
    assert not host.file("/etc/systemd/system/mlops-certificate.timer").exists


def outer_address(host: Host) -> str:
    """The address from which this machine comes to the target: its gateway."""
    rows = [line.split() for line in host.file("/proc/net/route").content_string.splitlines()[1:]]
    (gateway,) = (row[2] for row in rows if row[1] == "00000000")
    return ".".join(str(byte) for byte in reversed(bytes.fromhex(gateway)))


def start_pebble(host: Host) -> None:
    """Start the ACME server and its DNS, and wait until it answers."""
    start_dns(host)
    command = f"pebble -config {PEBBLE}/pebble.json -dnsserver 127.0.0.1:8053"
    # It looks anew each time, at once, and refuses none of the nonces that it gave.
    environment = "--setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_AUTHZREUSE=0 --setenv=PEBBLE_WFE_NONCEREJECT=0"
    host.check_output(f"systemd-run --unit=pebble {environment} {command}")
    wait_until(lambda: host.run(asking("14000/dir")).rc == 0, 30, "the ACME server answers")


def start_dns(host: Host) -> None:
    """Have every name lead to the target."""
    answers = "pebble-challtestsrv -defaultIPv4 127.0.0.1 -defaultIPv6 '' -dns01 127.0.0.1:8053 -management ''"
    host.check_output(f"systemd-run --unit=pebble-dns {answers} -doh '' -http01 '' -https01 '' -tlsalpn01 ''")


def asking(place: str) -> str:
    """The command that asks the ACME server on the target."""
    return f"REQUESTS_CA_BUNDLE={PEBBLE}/pebble.crt python3 -c '{ASK}' https://localhost:{place}"


@pytest.fixture
def url(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """The model API by its name, which is that of this machine for as long as the test runs."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, *more, **others: real("127.0.0.1" if name == NAME else name, *more, **others),
    )
    return f"https://{NAME}:{settings['local_host_api_port']}"


@pytest.fixture
def roots(host: Host, tmp_path: Path) -> str:
    """A file with the root of the ACME server, another one at each of its starts."""
    path = tmp_path / "roots.pem"
    path.write_text(host.check_output(asking("14001/roots/0")))
    return str(path)


def shown(settings: dict[str, Any]) -> x509.Certificate:
    """The certificate that nginx shows to who asks for the name."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    address = ("127.0.0.1", int(settings["local_host_api_port"]))
    with (
        socket.create_connection(address, timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as tls,
    ):
        return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")


def make_token() -> str:
    """A token of the model API."""
    made = run_playbook("playbooks/token.yml", "--extra-vars", "client=steady")
    (token,) = re.findall(r"^[\w-]{43}$", made.output, flags=re.MULTILINE)
    return str(token)


def test_the_first_certificate_is_there_when_the_run_ends(host: Host, settings: dict[str, Any]) -> None:
    certificate = shown(settings)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME], "neither localhost nor an address"
    assert "Pebble" in certificate.issuer.rfc4514_string()
    keys = host.check_output("find /var/lib/mlops/acme -name '*key*.pem' -type f -o -name 'private_key.json'").split()
    assert len(keys) >= 2, "of the certificate and of the account"
    assert {(host.file(key).user, host.file(key).mode & 0o077) for key in keys} == {("root", 0)}
    nginx = host.file("/etc/mlops/certificate/nginx.pem")
    assert (nginx.uid, nginx.mode) == (10003, 0o400), "the container's user and nobody else"


def test_the_challenge_is_answered_for_everybody_and_nothing_else(host: Host) -> None:
    # A container is in none of the networks that may come.
    ask = "docker exec mlops-nginx curl --silent --output /dev/null --write-out '%{http_code}' http://nginx"
    place = "/var/lib/mlops/acme-challenge/.well-known/acme-challenge"
    host.check_output(f"mkdir -p {place} && echo answer > {place}/question")
    assert host.check_output(f"{ask}/.well-known/acme-challenge/question") == "200"
    assert host.check_output(f"{ask}/.well-known/acme-challenge/../../etc/passwd") == "403"
    assert host.check_output(f"{ask}/") == "403"
    host.check_output(f"rm -r {place}")


def test_a_renewal_drops_no_request(host: Host, settings: dict[str, Any], url: str, roots: str) -> None:
    always_due(host)
    containers, bearer = container_ids(host), f"Bearer {make_token()}"
    serials = {shown(settings).serial_number}
    kept = steady_client(url, verify=roots, Authorization=bearer)
    new = steady_client(url, verify=roots, Authorization=bearer, Connection="close")
    with kept as failed_on_kept, new as failed_on_new:
        for _ in range(3):
            host.check_output(RENEWAL)
            serials.add(shown(settings).serial_number)
    assert len(serials) == 4, "each renewal is shown from the next handshake on"
    assert failed_on_kept + failed_on_new == []
    assert container_ids(host) == containers


def always_due(host: Host) -> None:
    """Have each run of the renewal renew."""
    configuration = "/var/lib/mlops/acme/renewal/localhost.conf"
    host.check_output(
        f"grep -q ^renew_before {configuration} || sed -i '1i renew_before_expiry = 9999 days' {configuration}"
    )


def test_a_renewal_that_fails_keeps_the_certificate_and_is_told_of(host: Host, settings: dict[str, Any]) -> None:
    always_due(host)
    before = shown(settings).serial_number
    host.check_output("systemctl stop pebble-dns")
    try:
        assert host.run(RENEWAL).rc != 0
        assert shown(settings).serial_number == before
        status = run_playbook("playbooks/status.yml")
        assert status.status != 0
        assert "mlops-certificate.service has failed" in status.output
        assert "Some challenges have failed" in host.check_output("journalctl -u mlops-certificate -n 40 -o cat")
    finally:
        start_dns(host)
        host.check_output(RENEWAL)
    assert run_playbook("playbooks/status.yml").status == 0


def test_one_that_has_ended_is_told_of_by_name(host: Host, settings: dict[str, Any], prometheus_url: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now - timedelta(minutes=1))
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content in (("ended.key", private), ("ended.crt", certificate.public_bytes(serialization.Encoding.PEM))):
        host.check_output(f"printf '%s' '{content.decode()}' > {PEBBLE}/{path}")
    host.check_output(f"/usr/local/lib/mlops/use-certificate {PEBBLE}/ended.key {PEBBLE}/ended.crt")
    try:
        assert shown(settings).serial_number == 1

        def firing() -> bool:
            alerts = requests.get(f"{prometheus_url}/api/v1/alerts", timeout=10).json()["data"]["alerts"]
            return ("CertificateEnded", "nginx", "firing") in {
                (alert["labels"]["alertname"], alert["labels"].get("service"), alert["state"]) for alert in alerts
            }

        wait_until(firing, 120, "the alert names nginx's certificate")
    finally:
        host.check_output(RENEWAL)


def test_a_key_of_another_certificate_changes_nothing(host: Host, settings: dict[str, Any]) -> None:
    before = shown(settings).serial_number
    result = host.run(f"/usr/local/lib/mlops/use-certificate {PEBBLE}/pebble.key {LINEAGE}/fullchain.pem")
    assert result.rc != 0
    assert "the key in /run/pebble/pebble.key is not that of" in result.stderr
    assert shown(settings).serial_number == before


def test_the_own_authority_signs_for_every_name_and_its_key_stays_here(
    host: Host, settings: dict[str, Any], acme: dict[str, Any], tmp_path: Path
) -> None:
    variables = {**acme, "nginx_tls": "own_ca", "nginx_own_ca": str(tmp_path / "ca")}
    arguments = ("site.yml", "--tags", "serve", "--extra-vars", json.dumps(variables))
    result = run_playbook(*arguments)
    assert result.status == 0, result.output
    root = tmp_path / "ca" / "ca.crt"
    assert str(root) in result.output, "the summary says what clients have to trust"
    with requests.Session() as session:
        session.trust_env, session.verify = False, str(root)
        for name in ("localhost", "127.0.0.1"):
            answer = session.get(f"https://{name}:{settings['local_host_api_port']}/health", timeout=10)
            assert answer.status_code == 200, name
    key = (tmp_path / "ca" / "ca.key").read_text().splitlines()[1]
    assert host.run("grep -rqF -e %s /etc/mlops /var/lib/mlops", key).rc == 1
    assert run_playbook(*arguments).changed == 0
