"""``wheels.py <directory>``: download the wheels of an environment, for a machine that may be another than this one.

Standard input is what ``python -m model_server.needs`` prints on that machine. What the directory has already is not
downloaded again. Index, proxy and authorities are those of this machine's uv and pip.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "app"))

from environments.requirements import Refused, Request  # noqa: E402 - the same rules as on the host

# Of Debian 13 and later. uv takes the newest that it knows, pip each that may be.
_GLIBC = 40
_OLDEST_GLIBC = 5


class WheelsError(Exception):
    """The wheels cannot be had; the message has the reason."""


def wheels(directory: Path, request: Request, python: str, machine: str) -> list[str]:
    """Download what a request resolves to, and return the names of the wheels that were not there.

    Args:
        directory: made when it is missing.
        request: what the environment is to have.
        python: the minor version that it is for, as ``3.13``.
        machine: what it is for, as ``uname -m`` says it.

    Raises:
        WheelsError: when versions do not go together, one has no wheel, or the index does not answer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    before = {file.name for file in directory.glob("*.whl")}
    platform = f"{machine}-manylinux_2_{_GLIBC}"
    lock = directory / "requirements.txt"
    lock.write_text(
        _run(
            *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-emit-index-url"),
            *("--no-emit-find-links", "--generate-hashes", "--only-binary=:all:"),
            *(f"--python-version={python}", f"--python-platform={platform}", "-"),
            given="\n".join([*request.requirements, *request.needs]) + "\n",
        )
    )
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC, _OLDEST_GLIBC - 1, -1)]
    tags += [f"{tag}_{machine}" for tag in ("manylinux2014", "manylinux2010", "manylinux1")]
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
        *("--require-hashes", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--platform={tag}" for tag in tags),
        *(f"--dest={directory}", f"--find-links={directory}", f"--requirement={lock}"),
    )
    return sorted({file.name for file in directory.glob("*.whl")} - before)


def _run(*command: str, given: str = "") -> str:
    paths = ssl.get_default_verify_paths()
    trusted = {"UV_SYSTEM_CERTS": "1"}
    if "PIP_CERT" not in os.environ and (authorities := paths.cafile or paths.capath):
        # pip brings authorities of its own.
        trusted["PIP_CERT"] = authorities
    done = subprocess.run(
        command, input=given, env={**os.environ, **trusted}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WheelsError(done.stderr.strip() or f"{command[0]} ended with {done.returncode}")
    return done.stdout


def main(arguments: list[str]) -> int:
    """Download, say what is new, and return the exit status."""
    (directory,) = arguments
    told = json.load(sys.stdin)
    try:
        new = wheels(Path(directory), Request.parse(told["asked"]), told["python"], told["machine"])
    except (Refused, WheelsError) as error:
        print(
            f"Nothing was changed on the host: the wheels for Python {told['python']} on {told['machine']} cannot be "
            f"had.\n{error}",
            file=sys.stderr,
        )
        return 1
    for name in new:
        print(f"got: {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
