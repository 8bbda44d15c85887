# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Filters that read certificates from files of the controller."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def pem_bundle(paths: Iterable[str]) -> str:
    """All certificates in some PEM files, each once, as one text.

    Args:
        paths: files on the controller; each may hold several certificates, and other text beside them.

    Returns:
        The same text whatever the order of the files; empty without files.

    Raises:
        AnsibleFilterError: a file cannot be read or holds no certificate.
    """
    certificates: set[str] = set()
    for path in paths:
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise AnsibleFilterError(f"mlops_ca_certificates: {path}: {error.strerror}") from error
        found = CERTIFICATE.findall(text)
        if not found:
            raise AnsibleFilterError(f"mlops_ca_certificates: {path} holds no certificate in PEM format")
        certificates.update(found)
    return "".join(f"{certificate}\n" for certificate in sorted(certificates))


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Filters by the name that templates use."""
        return {"pem_bundle": pem_bundle}
