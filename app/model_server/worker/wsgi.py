"""The application that Gunicorn loads before it forks: workers share the memory of all libraries."""

from __future__ import annotations

import gc

from model_server.common import contract, logs
from model_server.common.settings import Settings
from model_server.common.signature import Check
from model_server.worker.app import ModelServer, create_app


def _create() -> ModelServer:
    settings = Settings.from_environment()
    logs.configure(settings.debug)
    app = create_app(settings, contract.assigned_model())
    if app.stored is not None:
        check = Check(app.stored, settings.signing_key)
        import model_server.worker.model  # noqa: F401 - MLflow, pandas and NumPy, for all workers

        # Nothing of the version has been read until here.
        with contract.reporting_failure(status=1):
            app.signed = check.result(required=settings.require_signature)
        if settings.preload_model:
            with contract.reporting_failure(status=1):
                app.load()
    # The collector would otherwise write to every object's header and unshare the pages from the workers.
    gc.collect()
    gc.freeze()
    return app


application = _create()
