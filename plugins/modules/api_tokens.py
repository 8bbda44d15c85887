#!/usr/bin/python
# Copyright the mlops-appliance authors. SPDX-License-Identifier: Apache-2.0
"""Ansible module: the tokens by which clients of the model API are known."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: api_tokens
short_description: Make, list and revoke tokens of the model API
description:
  - A token is a file that is named by the token's SHA-256 and holds the client's name. nginx looks for it at each
    request, so nothing restarts or reloads.
options:
  state:
    description: C(made) makes one, C(listed) changes nothing, C(revoked) removes the tokens of a client.
    type: str
    choices: [made, listed, revoked]
    required: true
  client:
    description: Name of the client, of letters, digits, C(.), C(_) and C(-). It may have several tokens at once.
    type: str
    default: ""
  digest:
    description: How the digest of the one token to revoke begins.
    type: str
    default: ""
  directory:
    description: Where the tokens are.
    type: path
    default: /etc/mlops/tokens
attributes:
  check_mode: {support: full, description: Nothing is written; no token is made.}
  diff_mode: {support: none}
author: [The mlops-appliance authors]
"""

EXAMPLES = r"""
- name: A token is made
  api_tokens:
    state: made
    client: shop
  register: made
  no_log: true
"""

RETURN = r"""
token:
  description: The new token. It is kept nowhere.
  returned: state is made
  type: str
tokens:
  description: What is now there, or with C(revoked) what was removed. C(client), C(made) and how the C(digest) begins.
  returned: always
  type: list
  elements: dict
"""

ARGUMENT_SPEC: dict[str, Any] = {
    "state": {"type": "str", "choices": ["made", "listed", "revoked"], "required": True},
    "client": {"type": "str", "default": ""},
    "digest": {"type": "str", "default": ""},
    "directory": {"type": "path", "default": "/etc/mlops/tokens"},
}

TOKEN_BYTES = 32
SHOWN_DIGITS = 12
# The group of nginx in its container; the host has no such group.
NGINX_GROUP = 10002
CLIENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]*")


class TokenError(ValueError):
    """The request cannot be met; the message names the argument and the way out."""


@dataclass(frozen=True)
class Token:
    """What is known of a token: never the token itself."""

    client: str
    made: str
    digest: str


def found(directory: Path) -> list[tuple[Path, Token]]:
    """The tokens in a directory, by client and age."""
    tokens = []
    for path in directory.iterdir() if directory.is_dir() else ():
        if DIGEST.fullmatch(path.name):
            made = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            tokens.append((path, Token(path.read_text(encoding="utf-8").strip(), made, path.name[:SHOWN_DIGITS])))
    return sorted(tokens, key=lambda item: (item[1].client, item[1].made, item[0].name))


def make(directory: Path, client: str) -> str:
    """Make a token for a client and remember its digest.

    Args:
        directory: where the tokens are; made when it is missing.
        client: name of the client.

    Returns:
        The token, which is kept nowhere.

    Raises:
        TokenError: the name cannot be one.
    """
    _check_client(client)
    directory.mkdir(parents=True, exist_ok=True)
    _give(directory, 0o750)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    path = directory / hashlib.sha256(token.encode()).hexdigest()
    # Complete and readable when it gets the name under which nginx looks for it.
    written = directory / f".{path.name}"
    written.write_text(f"{client}\n", encoding="utf-8")
    _give(written, 0o640)
    written.rename(path)
    return token


def to_revoke(tokens: Sequence[tuple[Path, Token]], client: str, digest: str) -> list[tuple[Path, Token]]:
    """The tokens that are meant.

    Args:
        tokens: all tokens.
        client: name of the client.
        digest: how the digest of the one that is meant begins; empty for all of the client.

    Raises:
        TokenError: there is none, or more than one whose digest begins so.
    """
    _check_client(client)
    if not PREFIX.fullmatch(digest):
        raise TokenError(f"digest: {digest!r} is no beginning of one: give what the list of tokens shows.")
    meant = [item for item in tokens if item[1].client == client and item[0].name.startswith(digest)]
    if not meant:
        clients = ", ".join(sorted({token.client for _, token in tokens})) or "nobody"
        which = f" whose digest begins with {digest}" if digest else ""
        raise TokenError(f"client: {client} has no token{which}; tokens have: {clients}.")
    if digest and len(meant) > 1:
        raise TokenError(f"digest: {len(meant)} tokens of {client} begin with {digest}: give more of it.")
    return meant


def _check_client(client: str) -> None:
    if not CLIENT.fullmatch(client):
        raise TokenError(
            f"client: {client!r} is no name: give up to 64 letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit."
        )


def _give(path: Path, mode: int) -> None:
    # For root to write and nginx to read. Tests are not root.
    if os.geteuid() == 0:
        os.chown(path, 0, NGINX_GROUP)
    path.chmod(mode)


def make_so(state: str, client: str, digest: str, directory: str, *, check_mode: bool = False) -> dict[str, Any]:
    """Do what the module is asked to.

    Args:
        state: ``made``, ``listed`` or ``revoked``.
        client: name of the client.
        digest: how the digest of the one token to revoke begins.
        directory: where the tokens are.
        check_mode: whether nothing may change.

    Returns:
        What the module returns.

    Raises:
        TokenError: the request cannot be met.
    """
    place = Path(directory)
    if state == "made":
        _check_client(client)
        token = "" if check_mode else make(place, client)
        return {"changed": True, "token": token, "tokens": [asdict(item) for _, item in found(place)]}
    if state == "listed":
        return {"changed": False, "tokens": [asdict(item) for _, item in found(place)]}
    meant = to_revoke(found(place), client, digest)
    if not check_mode:
        for path, _ in meant:
            path.unlink()
    return {"changed": True, "tokens": [asdict(item) for _, item in meant]}


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    try:
        result = make_so(**module.params, check_mode=module.check_mode)
    except TokenError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
