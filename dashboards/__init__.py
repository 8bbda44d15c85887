"""The appliance's Grafana dashboards as code; ``python -m dashboards`` writes the files that the role mounts."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import application, ml_pipeline, stores, system

FILES = Path(__file__).parents[1] / "roles" / "grafana" / "files" / "dashboards"


def rendered() -> dict[str, str]:
    """The text of each dashboard by the name of its file."""
    documents = {
        "ml-pipeline.json": ml_pipeline.dashboard(),
        "system.json": system.dashboard(),
        "application.json": application.dashboard(),
        "stores.json": stores.dashboard(),
    }
    return {
        name: json.dumps(document, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, document in documents.items()
    }
