# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Sign the certificate of a host with a certificate authority that the controller keeps."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Name of its two files.
AUTHORITY = "ca"
AUTHORITY_DAYS = 3650
# Browsers and Mozilla's profile take no longer ones.
CERTIFICATE_DAYS = 365
RENEWED_BEFORE = timedelta(days=30)


def provide(directory: Path, host: str, names: Sequence[str], now: datetime, *, check_mode: bool = False) -> list[str]:
    """Make what is missing or ends soon: the authority, ``ca.crt`` and ``ca.key``, and a host's certificate and key.

    Args:
        directory: where they are kept; made when it is missing.
        host: name of the host, and of its two files.
        names: names and addresses by which clients know the host.
        now: the time, with its zone.
        check_mode: write nothing.

    Returns:
        Paths of the files that are made, or in check mode would be.

    Raises:
        AnsibleActionFail: half of the authority is missing, a file in its place is none, or the host has its name.
    """
    if host == AUTHORITY:
        raise AnsibleActionFail(
            f"nginx_own_ca: a host named {host!r} would have its files in the place of the authority's: "
            "give it another name in the inventory."
        )
    if check_mode and not directory.is_dir():
        return [str(directory / f"{stem}.{kind}") for stem in (AUTHORITY, host) for kind in ("key", "crt")]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Hosts are made so side by side, and have one authority.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return _provide(directory, host, names, now, check_mode=check_mode)
    finally:
        os.close(descriptor)


def _provide(directory: Path, host: str, names: Sequence[str], now: datetime, *, check_mode: bool) -> list[str]:
    made: list[str] = []

    def keep(stem: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = certificate.public_bytes(serialization.Encoding.PEM)
        for path, content, mode in (
            (directory / f"{stem}.key", private, 0o600),
            (directory / f"{stem}.crt", public, 0o644),
        ):
            made.append(str(path))
            if not check_mode:
                _write(path, content, mode)

    present = [name for name in ("ca.key", "ca.crt") if (directory / name).exists()]
    if len(present) == 1:
        raise AnsibleActionFail(
            f"nginx_own_ca: {directory} has {present[0]} and not the other half of the authority, ca.key and ca.crt: "
            f"bring that back from your copy, or remove {present[0]}, and all clients have to trust a new authority."
        )
    if present:
        authority_key, authority = _read(directory, AUTHORITY)
    else:
        authority_key, authority = _new_authority(now)
        keep(AUTHORITY, authority_key, authority)
    if not _is_fit(directory, host, authority, names, now):
        keep(host, *_signed(authority_key, authority, names, now))
    return made


def _write(path: Path, content: bytes, mode: int) -> None:
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
    Path(temporary).chmod(mode)
    Path(temporary).replace(path)


def _read(directory: Path, stem: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((directory / f"{stem}.key").read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificate((directory / f"{stem}.crt").read_bytes())
    except (OSError, TypeError, ValueError) as error:
        raise AnsibleActionFail(
            f"nginx_own_ca: {directory}/{stem}.key and .crt cannot be read: {error}: bring them back from your copy."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise AnsibleActionFail(
            f"nginx_own_ca: {directory}/{stem}.key is not the key of {stem}.crt: bring them back from your copy."
        )
    return key, certificate


def _alternative_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(found)


def _is_fit(directory: Path, host: str, authority: x509.Certificate, names: Sequence[str], now: datetime) -> bool:
    try:
        _, certificate = _read(directory, host)
        certificate.verify_directly_issued_by(authority)
        shown = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (AnsibleActionFail, InvalidSignature, ValueError, x509.ExtensionNotFound):
        # Missing, broken, or of a former authority: another one is signed.
        return False
    return set(shown) == set(_alternative_names(names)) and certificate.not_valid_after_utc - now > RENEWED_BEFORE


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks differ.
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_authority(now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    # Two appliances' authorities are told apart in a list of those that are trusted.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"MLOps appliance {now:%Y-%m-%d %H:%M:%S}")])
    certificate = (
        _builder(name, name, key.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _signed(
    authority_key: ec.EllipticCurvePrivateKey, authority: x509.Certificate, names: Sequence[str], now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(now + timedelta(days=CERTIFICATE_DAYS), authority.not_valid_after_utc)
    # Names are in the extension; a common name may have 64 characters only.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_alternative_names(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return key, certificate


class ActionModule(ActionBase):
    """An action without a module: everything is on the controller.

    Task arguments:
        directory: where the authority and the hosts' certificates are kept.
        host: name of the host.
        names: names and addresses by which clients know it.
    """

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Make what is missing or ends soon; ``made`` has the paths of the files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = self._task.args
        made = provide(
            Path(arguments["directory"]),
            str(arguments["host"]),
            list(map(str, arguments["names"])),
            datetime.now(UTC),
            check_mode=self._play_context.check_mode,
        )
        return {**result, "changed": bool(made), "made": made}
