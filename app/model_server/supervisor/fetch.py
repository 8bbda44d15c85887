"""``python -m model_server.supervisor.fetch <model uri> <directory>``: download a model into ``<directory>/model``.

A process of its own, because MLflow's client is large and its memory should go back when the model is here.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Download and return the exit status; a failure is one line on standard error."""
    uri, directory = arguments
    try:
        from mlflow.artifacts import download_artifacts

        target = Path(directory) / "model"
        target.mkdir()
        downloaded = Path(download_artifacts(artifact_uri=uri, dst_path=str(target)))
        if downloaded != target:
            downloaded.rename(Path(directory) / "downloaded")
            target.rmdir()
            (Path(directory) / "downloaded").rename(target)
        # What MLflow's client notes of its own beside a registered model's files.
        (target / "registered_model_meta").unlink(missing_ok=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is one line for the supervisor's log
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
