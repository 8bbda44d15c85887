"""The controller's own certificate authority signs for a host, and again before the certificate ends."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from ansible.errors import AnsibleActionFail
from conftest import load_plugin
from cryptography import x509

own = load_plugin("action/own_certificate.py")
NOW = datetime(2031, 2, 3, 4, 5, 6, tzinfo=UTC)
NAMES = ["mlops.example.org", "localhost", "127.0.0.1", "::1", "localhost"]
HOST = "host.example.org"


def provide(directory: Path, names: list[str] = NAMES, days: float = 0, host: str = HOST) -> list[str]:
    """Names of the files that a run some days later makes."""
    made = own.provide(directory, host, names, NOW + timedelta(days=days))
    return [Path(path).name for path in made]


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the first run has made all that is needed."""
    path = tmp_path / "inventory" / "ca"
    assert provide(path) == ["ca.key", "ca.crt", f"{HOST}.key", f"{HOST}.crt"]
    return path


def test_only_the_owner_can_read_the_keys(directory: Path) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()} == {
        "ca.key": 0o600,
        "ca.crt": 0o644,
        f"{HOST}.key": 0o600,
        f"{HOST}.crt": 0o644,
    }


def test_the_certificate_is_for_every_name_and_no_longer_than_clients_take(directory: Path) -> None:
    signed, authority = certificate(directory / f"{HOST}.crt"), certificate(directory / "ca.crt")
    signed.verify_directly_issued_by(authority)
    names = signed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == NAMES[:2]
    assert list(map(str, names.get_values_for_type(x509.IPAddress))) == NAMES[2:4]
    assert signed.not_valid_after_utc == NOW + timedelta(days=365)
    assert signed.not_valid_after_utc - signed.not_valid_before_utc < timedelta(days=366)
    # OpenSSL's own view of the pair, and of the authority.
    context = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    context.load_cert_chain(directory / f"{HOST}.crt", directory / f"{HOST}.key")
    assert not signed.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_second_run_makes_nothing_until_30_days_before_the_end(directory: Path) -> None:
    authority = (directory / "ca.crt").read_bytes()
    assert provide(directory) == provide(directory, days=334.9) == []
    assert provide(directory, days=335) == [f"{HOST}.key", f"{HOST}.crt"]
    assert provide(directory, days=335) == []
    assert (directory / "ca.crt").read_bytes() == authority


def test_other_names_and_what_is_broken_or_of_another_authority_are_signed_anew(
    directory: Path, tmp_path: Path
) -> None:
    files = [f"{HOST}.key", f"{HOST}.crt"]
    assert provide(directory, NAMES[:1]) == files
    (directory / f"{HOST}.key").unlink()
    assert provide(directory, NAMES[:1]) == files
    provide(tmp_path / "other")
    for name in ("ca.key", "ca.crt"):
        (directory / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert provide(directory, NAMES[:1]) == files


def test_hosts_share_an_authority(directory: Path) -> None:
    assert provide(directory, host="second") == ["second.key", "second.crt"]


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_half_an_authority_is_refused_with_the_way_out(directory: Path, name: str) -> None:
    (directory / name).unlink()
    with pytest.raises(AnsibleActionFail, match=r"nginx_own_ca: .* not the other half of the authority.* your copy"):
        provide(directory)


def test_an_authority_with_another_key_is_refused(directory: Path, tmp_path: Path) -> None:
    provide(tmp_path / "other")
    (directory / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(AnsibleActionFail, match=r"ca.key is not the key of ca.crt"):
        provide(directory)


def test_a_host_with_the_name_of_the_authority_does_not_take_its_place(directory: Path) -> None:
    before = (directory / "ca.key").read_bytes()
    with pytest.raises(AnsibleActionFail, match=r"nginx_own_ca: a host named 'ca' .* another name in the inventory"):
        provide(directory, host="ca")
    assert (directory / "ca.key").read_bytes() == before


def test_check_mode_writes_nothing(directory: Path, tmp_path: Path) -> None:
    before = (directory / f"{HOST}.crt").read_bytes()
    made = own.provide(directory, HOST, NAMES[:1], NOW, check_mode=True)
    assert [Path(path).name for path in made] == [f"{HOST}.key", f"{HOST}.crt"]
    assert (directory / f"{HOST}.crt").read_bytes() == before
    assert len(own.provide(tmp_path / "none", HOST, NAMES, NOW, check_mode=True)) == 4
    assert not (tmp_path / "none").exists()
