"""The application that Gunicorn loads before it forks, so that workers share the model's memory."""

from __future__ import annotations

import gc
import logging
import sys

from model_server.common import contract, logs
from model_server.common.settings import Settings
from model_server.worker.app import ModelServer, create_app

_logger = logging.getLogger(__name__)


def _load() -> ModelServer:
    settings = Settings.from_environment()
    logs.configure(settings.debug)
    stored = contract.assigned_model()
    if stored is None:
        return create_app(settings, None)
    try:
        from model_server.worker.model import ServedModel

        model = ServedModel.load(stored, settings.max_rows, settings.max_body_bytes)
        app = create_app(settings, model)
    except BaseException as error:
        _logger.exception("the model cannot be loaded", extra={"version": stored.version.version})
        contract.report_failure(f"it cannot be loaded: {type(error).__name__}: {error}")
        sys.exit(1)
    gc.collect()
    # The collector would otherwise write to every object's header and unshare the pages from the workers.
    gc.freeze()
    return app


application = _load()
