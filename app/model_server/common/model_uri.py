"""Which version of a registered model is asked for, as MLflow writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass

LATEST = "latest"
"""An alias that every registry keeps by itself: the version with the highest number."""
_FORMS = "models:/NAME@ALIAS, models:/NAME/3 or models:/NAME/latest"
_URI = re.compile(r"models:/(?P<name>[^/:@]+)(?:@(?P<alias>[\w-]+)|/(?P<suffix>[^/:@]+))")


@dataclass(frozen=True)
class ModelUri:
    """A registered model's name, and the alias or the number of a version of it; one of the two is empty."""

    name: str
    alias: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"models:/{self.name}/{self.version}" if self.version else f"models:/{self.name}@{self.alias}"

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """Read ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/NAME/latest``.

        Raises:
            ValueError: it is none of these; the message says what to give.
        """
        found = _URI.fullmatch(text)
        if found is None or found["name"] in (".", ".."):
            raise ValueError(f"give {_FORMS}")
        suffix = found["suffix"] or ""
        if suffix.lower() == LATEST:
            return cls(found["name"], alias=LATEST)
        if suffix and not (suffix.isascii() and suffix.isdigit()):
            raise ValueError(f"{suffix!r} is no version; MLflow has no stages any more: give {_FORMS}")
        return cls(found["name"], alias=found["alias"] or "", version=suffix)
