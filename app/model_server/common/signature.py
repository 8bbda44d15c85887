"""A model version's signature: what is signed, and how that is looked at.

Signed is all that lies in the directory of a stored version: the model's files, and ``version.json``, which says of
which model's which version they are. So files of one version never pass for another's, though each is signed.

Importing model-signing takes a second or more and 60 MB: what signs or verifies is a process of its own, which ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model_server.common.environment import PYTHON_VARIABLE
from model_server.common.store import SIGNATURE, StoredModel

if TYPE_CHECKING:
    from model_signing.hashing import Config


class SignatureError(Exception):
    """A version has not the signature that it is to have; the message is a clause without a full stop."""


def sign(directory: Path, private_key: Path) -> None:
    """Sign a stored version.

    Args:
        directory: of the version.
        private_key: a PEM file, of an elliptic curve.
    """
    from model_signing import signing

    config = signing.Config()  # type: ignore[no-untyped-call]  # model-signing has no types here
    config.use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_hashing()).sign(directory, directory / SIGNATURE)


def verify(directory: Path, public_key: Path) -> None:
    """Check the signature of a stored version.

    Args:
        directory: of the version.
        public_key: a PEM file, of the key that it is to be signed with.

    Raises:
        SignatureError: when it does not fit the key, the files or the version.
    """
    from model_signing import verifying

    config = verifying.Config()  # type: ignore[no-untyped-call]  # model-signing has no types here
    try:
        config.use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(_hashing()).verify(directory, directory / SIGNATURE)
    except Exception as error:
        # Anybody may have written it: what cannot be read is a wrong one too.
        raise SignatureError(f"its signature does not fit: {str(error) or type(error).__name__}") from error


def _hashing() -> Config:
    from model_signing import hashing

    config: Config = hashing.Config()  # type: ignore[no-untyped-call]  # model-signing has no types here
    # Whatever else lies there may be loaded, what looks like git's too; a symbolic link is refused.
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


class Check:
    """The check of a version's signature, which runs beside what else there is to do until its :meth:`result`.

    Args:
        stored: the version.
        public_key: of the key that it is to be signed with, or None where none is known.
    """

    def __init__(self, stored: StoredModel, public_key: Path | None) -> None:
        self._process: subprocess.Popen[str] | None = None
        if public_key is not None and os.path.lexists(stored.directory / SIGNATURE):
            self._process = subprocess.Popen(
                # A generation may run in an environment of its model's, which has nothing to check signatures with.
                [
                    os.environ.get(PYTHON_VARIABLE, sys.executable),
                    "-m",
                    "model_server.verify",
                    str(stored.directory),
                    str(public_key),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )

    def result(self, *, required: bool) -> bool:
        """Whether the version is signed.

        Args:
            required: whether it has to be.

        Raises:
            SignatureError: when its signature is wrong, or missing where it is required.
        """
        if self._process is None:
            if required:
                raise SignatureError("it is not signed")
            return False
        _, said = self._process.communicate()
        if self._process.returncode:
            raise SignatureError((said.strip().splitlines() or ["its signature cannot be checked"])[-1])
        return True
