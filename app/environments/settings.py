"""Configuration from the environment: read once, checked, refused with the name of the variable that is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class SettingsError(ValueError):
    """A variable has a value that cannot be used; the message names it, its value and the way out."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be set, with the variable of each in :meth:`from_environment`."""

    directory: Path
    """Where environments are kept, with uv's cache: hard links need one volume."""
    wheels: Path
    """A directory of wheels that were brought; it need not exist."""
    network: Path
    """A file of ``NAME=VALUE`` lines for uv alone: addresses of indexes and of a proxy, which may hold passwords."""
    python: str
    """The interpreter of the environments, at the same path where they are used."""
    quota: int
    """Bytes that the directory may have."""
    timeout: float
    """Seconds that one environment may take."""
    build_packages: bool
    """Whether packages without a wheel are built, which runs their code."""
    host: str
    port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read and check every variable; an empty one counts as unset.

        Raises:
            SettingsError: for the first variable that cannot be used.
        """
        source = os.environ if environment is None else environment

        def text(name: str, default: str) -> str:
            return source.get(name, "").strip() or default

        def number(name: str, default: str, lowest: int) -> int:
            value = text(name, default)
            if not value.isdecimal() or int(value) < lowest:
                raise SettingsError(f"{name}={value!r} cannot be used: give a whole number from {lowest} on")
            return int(value)

        directory = Path(text("ENVIRONMENTS_DIRECTORY", "/var/lib/environments"))
        if not os.access(directory, os.W_OK | os.X_OK):
            raise SettingsError(
                f"ENVIRONMENTS_DIRECTORY={str(directory)!r} cannot be used: user {os.getuid()} may not write there; "
                "mount a volume there that is that user's"
            )
        build_packages = text("ENVIRONMENTS_BUILD_PACKAGES", "false").lower()
        if build_packages not in ("true", "false"):
            raise SettingsError(f"ENVIRONMENTS_BUILD_PACKAGES={build_packages!r} cannot be used: give true or false")
        return cls(
            directory=directory,
            wheels=Path(text("ENVIRONMENTS_WHEELS", "/var/lib/wheels")),
            network=Path(text("ENVIRONMENTS_NETWORK", "/run/secrets/environments_network")),
            python=text("ENVIRONMENTS_PYTHON", "/usr/bin/python3"),
            quota=number("ENVIRONMENTS_QUOTA_BYTES", str(10 * 1024**3), 1),
            timeout=number("ENVIRONMENTS_TIMEOUT_SECONDS", "600", 1),
            build_packages=build_packages == "true",
            # In a container every interface is the container network's.
            host=text("ENVIRONMENTS_HOST", "0.0.0.0"),  # noqa: S104
            port=number("ENVIRONMENTS_PORT", "8000", 1),
        )

    def network_variables(self) -> dict[str, str]:
        """What uv is told of the network."""
        try:
            lines = self.network.read_text().splitlines()
        except OSError:
            return {}
        found = (line.partition("=") for line in lines)
        return {name: value for name, _, value in found if value}
