"""Certificate authorities that the host and every image built on it trust."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from conftest import load_plugin

certificates = load_plugin("filter/certificates.py")


def pem(body: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"


def write(path: Path, *bodies: str) -> str:
    path.write_text("Subject: somebody\n" + "".join(map(pem, bodies)))
    return str(path)


def test_no_files_are_no_authorities() -> None:
    assert certificates.pem_bundle([]) == ""


def test_certificates_of_all_files_are_in_the_bundle_without_the_text_around_them(tmp_path: Path) -> None:
    paths = [write(tmp_path / "one.pem", "AA", "BB"), write(tmp_path / "two.crt", "CC")]
    assert certificates.pem_bundle(paths) == pem("AA") + pem("BB") + pem("CC")


def test_order_and_repetition_change_nothing(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one.pem", "AA"), write(tmp_path / "two.pem", "BB", "AA")
    assert certificates.pem_bundle([two, one]) == certificates.pem_bundle([one, two]) == pem("AA") + pem("BB")


def test_a_missing_file_is_named_with_its_setting(tmp_path: Path) -> None:
    with pytest.raises(AnsibleFilterError, match=r"mlops_ca_certificates: .*/none\.pem: No such file"):
        certificates.pem_bundle([str(tmp_path / "none.pem")])


def test_a_file_without_a_certificate_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(AnsibleFilterError, match=r"mlops_ca_certificates: .*/key\.pem holds no certificate"):
        certificates.pem_bundle([str(tmp_path / "key.pem")])
