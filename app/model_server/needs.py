"""``python -m model_server.needs <model uri>``: what an environment for a model version takes, as the service is asked.

One JSON object on standard output: the body for the service ``environments``, the Python and the machine.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path

from model_server.supervisor.environment import needs, requirement_lines


def main(arguments: list[str]) -> int:
    """Print it, and return the exit status; a failure is one line on standard error."""
    (uri,) = arguments
    try:
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as directory:
            file = download_artifacts(artifact_uri=f"{uri}/requirements.txt", dst_path=directory)
            lines = requirement_lines(Path(file).read_text())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line for whoever asks
        print(f"The requirements of {uri} cannot be had: {error}", file=sys.stderr)
        return 1
    python = ".".join(platform.python_version_tuple()[:2])
    asked = {"requirements": lines, "with": needs()}
    print(json.dumps({"asked": asked, "python": python, "machine": platform.machine()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
