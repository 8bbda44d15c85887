"""``python -m model_server.promote``: sign a model version, and then move an alias to it.

It has the private key, so it loads no model: files are downloaded, hashed, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

from model_server.common import signature
from model_server.common.model_uri import ModelUri
from model_server.common.store import SIGNATURE, SIGNATURES, ModelStore, ModelVersion, StoredModel
from model_server.supervisor import fetch
from model_server.supervisor.registry import RegistryError, registry_at


class PromotionError(Exception):
    """A version cannot be signed or promoted; the message says why."""


def promote(version: ModelVersion, private_key: Path, signed_by: Sequence[Path] = ()) -> None:
    """Sign the files that the registry has of a version, and put the signature beside them.

    Args:
        version: the one to sign.
        private_key: a PEM file.
        signed_by: public keys; by one of them it has to be signed already. Empty: it need not be.

    Raises:
        PromotionError: it cannot be downloaded.
        SignatureError: it has not the signature that it has to have.
    """
    # On disk: a model may be larger than what is kept in memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        store = ModelStore(Path(directory), version.name)
        staging = store.stage(version)
        if fetch.main([version.uri, str(staging)]):
            raise PromotionError(f"version {version.version} of {version.name} cannot be downloaded")
        stored = store.commit(version, staging)
        if signed_by:
            _require(stored, signed_by)
        signature.sign(stored.directory, private_key)
        upload = Path(directory) / version.signature_name
        (stored.directory / SIGNATURE).rename(upload)
        files = ModelsArtifactRepository.get_underlying_uri(version.uri)
        get_artifact_repository(files).log_artifact(str(upload), SIGNATURES)


def _require(stored: StoredModel, signed_by: Sequence[Path]) -> None:
    *others, last = signed_by
    for key in others:
        with contextlib.suppress(signature.SignatureError):
            signature.verify(stored.directory, key)
            return
    signature.verify(stored.directory, last)


def main(arguments: list[str]) -> int:
    """Sign, move, and return the exit status; what was signed is a line on standard output."""
    parser = argparse.ArgumentParser(prog="model_server.promote", description=__doc__)
    parser.add_argument("model", type=ModelUri.parse, help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("--key", type=Path, required=True, help="PEM file of the private key")
    parser.add_argument("--alias", default="", help="the alias that is moved to it; one that named it is taken away")
    parser.add_argument("--withdraw", default="", help="another alias of the model that is taken away")
    parser.add_argument(
        "--signed-by", type=Path, action="append", help="public key that has to have signed it before, or the next one"
    )
    given = parser.parse_args(arguments)
    model: ModelUri = given.model
    tracking_uri = os.environ["MLFLOW_TRACKING_URI"]
    try:
        version = registry_at(tracking_uri, model).champion()
        if version is None and model.alias:
            # No run has approved of one: nothing to do.
            return 0
        if version is None:
            raise PromotionError(f"the registry has no version {model.version} of {model.name}")
        promote(version, given.key, given.signed_by or ())
        if given.alias:
            client = MlflowClient(tracking_uri)
            client.set_registered_model_alias(version.name, given.alias, version.version)
            for alias in {model.alias, given.withdraw} - {given.alias, ""}:
                client.delete_registered_model_alias(version.name, alias)
    except (PromotionError, RegistryError, signature.SignatureError, MlflowException, OSError, ValueError) as error:
        way_out = "; sign one that you trust: make promote NAME=… VERSION=…" if given.signed_by else ""
        print(f"{model} is not signed: {error}{way_out}", file=sys.stderr)
        return 1
    print(f"signed: version {version.version} of {version.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
