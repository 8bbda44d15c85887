"""The application that Gunicorn loads before it forks, so that workers share the model's memory."""

from __future__ import annotations

import gc
import logging
import sys

from model_server import generation, logs
from model_server.app import ModelServer, create_app
from model_server.settings import Settings

_logger = logging.getLogger(__name__)


def _load() -> ModelServer:
    settings = Settings.from_environment()
    logs.configure(settings.debug)
    stored = generation.assigned_model()
    if stored is None:
        return create_app(settings, None)
    try:
        from model_server.model import ServedModel

        model = ServedModel.load(stored, settings.max_rows, settings.max_body_bytes)
        app = create_app(settings, model)
    except BaseException as error:
        _logger.exception("the model cannot be loaded", extra={"version": stored.version.version})
        generation.report_failure(f"it cannot be loaded: {type(error).__name__}: {error}")
        sys.exit(1)
    gc.collect()
    # The collector would otherwise write to every object's header and unshare the pages from the workers.
    gc.freeze()
    return app


application = _load()
