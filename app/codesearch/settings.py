"""What a training run is told by its environment."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class TrainingError(Exception):
    """Something the operator can put right; the message says what."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one run.

    Attributes:
        tracking_uri: MLflow's tracking server.
        experiment_name: experiment of the run.
        model_name: registered model; the base model is registered as ``<model_name>_base``.
        corpus: directory of Python code to search, None for the standard library.
        base_corpus: directory to pre-train on, None for the packages installed beside this one.
        seed: of all that is random.
        pretraining_epochs: how often pre-training sees each function.
        epochs: how often fine-tuning sees each function.
        may_promote: whether a better model becomes the champion at once; if not, somebody else moves the alias.
        promotion_alias: what a better model gets: ``champion``, or another where somebody signs it first.
    """

    tracking_uri: str
    experiment_name: str = "code-search"
    model_name: str = "code-search"
    corpus: Path | None = None
    base_corpus: Path | None = None
    seed: int = 0
    pretraining_epochs: int = 3
    epochs: int = 8
    may_promote: bool = True
    promotion_alias: str = "champion"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the settings.

        Raises:
            TrainingError: one is missing or makes no sense.
        """
        tracking_uri = environment.get("MLFLOW_TRACKING_URI", "")
        if not tracking_uri:
            raise TrainingError("MLFLOW_TRACKING_URI is not set: where is the tracking server?")
        return cls(
            tracking_uri=tracking_uri,
            experiment_name=_name(environment, "EXPERIMENT_NAME"),
            model_name=_name(environment, "MODEL_NAME"),
            corpus=_directory(environment, "TRAINING_CORPUS"),
            base_corpus=_directory(environment, "TRAINING_BASE_CORPUS"),
            seed=_number(environment, "TRAINING_SEED", default=0, least=0),
            pretraining_epochs=_number(environment, "TRAINING_PRETRAINING_EPOCHS", default=3, least=1),
            epochs=_number(environment, "TRAINING_EPOCHS", default=8, least=1),
            may_promote=environment.get("TRAINING_MAY_PROMOTE", "true").lower() != "false",
            promotion_alias=environment.get("TRAINING_PROMOTION_ALIAS") or "champion",
        )

    @property
    def corpus_name(self) -> str:
        """What people call the corpus."""
        return "standard library" if self.corpus is None else self.corpus.name or "corpus"

    @property
    def corpus_root(self) -> Path:
        """Where the corpus is."""
        return self.corpus or Path(sysconfig.get_path("stdlib"))

    @property
    def base_corpus_name(self) -> str:
        """What people call the pre-training corpus."""
        return "installed packages" if self.base_corpus is None else self.base_corpus.name or "base corpus"

    @property
    def base_corpus_root(self) -> Path:
        """Where the pre-training corpus is."""
        return self.base_corpus or Path(sysconfig.get_path("purelib"))


def _name(environment: Mapping[str, str], variable: str) -> str:
    return environment.get(variable, "").strip() or "code-search"


def _directory(environment: Mapping[str, str], variable: str) -> Path | None:
    if not (value := environment.get(variable, "")):
        return None
    path = Path(value)
    if not path.is_dir():
        raise TrainingError(f"{variable}: {value} is not a directory")
    return path


def _number(environment: Mapping[str, str], variable: str, *, default: int, least: int) -> int:
    value = environment.get(variable, "") or str(default)
    if not value.isdecimal() or int(value) < least:
        raise TrainingError(f"{variable} must be a whole number from {least}, not {value!r}")
    return int(value)
