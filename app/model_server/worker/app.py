"""The Flask application: MLflow's scoring protocol and what an operator needs beside it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_flask_exporter import PrometheusMetrics
from werkzeug.exceptions import HTTPException

from model_server.common import metrics
from model_server.worker.errors import DeadlineError, ModelFailedError, NoModelError, RequestError, ServerError
from model_server.worker.invocations import ERROR_KEY, PATH, Invocations, request_id
from model_server.worker.openapi import describe
from model_server.worker.predictor import Predictor

if TYPE_CHECKING:
    from model_server.common.settings import Settings
    from model_server.worker.model import ServedModel

_logger = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HTTP_ERROR_CODES = {404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR"}
_NO_MODEL = "No model is served yet: none is registered under this name and alias. Train one with --tags train."


class ModelServer(Flask):
    """A Flask application with the model it serves."""

    def __init__(self, settings: Settings, model: ServedModel | None) -> None:
        super().__init__("model_server", static_folder=None)
        self.settings = settings
        self.model = model

    def start_worker(self) -> None:
        """Begin in a worker process: threads do not survive the fork, and metrics belong to a process."""
        if self.model is None:
            return
        settings, version = self.settings, self.model.version
        predictor = Predictor(settings.concurrency, settings.queue_length, settings.request_timeout)
        self.wsgi_app = Invocations(  # type: ignore[method-assign]  # Flask's own way to put something before it
            self.model, predictor, settings.max_body_bytes, self.error_body, self.wsgi_app
        )
        metrics.MODEL_INFO.labels(version.name, version.version, version.run_id).set(1)
        metrics.MODEL_LOADED.set(self.model.loaded_at)
        self.model.drift.announce()

    def error_body(self, error: RequestError, identifier: str) -> bytes:
        """The JSON body of an error; logs and counts it."""
        if isinstance(error, ModelFailedError):
            _logger.error("the model failed", extra={"request_id": identifier}, exc_info=error.__cause__)
        elif isinstance(error, ServerError):
            _logger.error("a request failed in the server", extra={"request_id": identifier}, exc_info=error.__cause__)
        elif isinstance(error, DeadlineError):
            _logger.warning("a prediction was not there in time", extra={"request_id": identifier})
        if self.settings.debug and error.__cause__ is not None:
            error.detail = "".join(traceback.format_exception(error.__cause__))
        metrics.ERRORS.labels(error.kind).inc()
        metrics.REQUESTS.labels(str(error.status)).inc()
        return orjson.dumps(error.body(identifier, self.settings.debug))


def create_app(settings: Settings, model: ServedModel | None) -> ModelServer:
    """The application for one model version, or for none yet.

    Call :meth:`ModelServer.start_worker` in the process that answers requests.
    """
    app = ModelServer(settings, model)
    app.before_request(_begin)
    app.after_request(_finisher(app))
    http_error, any_error = _error_handlers(app)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, any_error)
    # The default metrics of every route. Its own endpoint is off: /metrics sums over the slots of all processes.
    # What Flask sees of the scoring path is its errors only; metrics.REQUESTS counts all of it.
    PrometheusMetrics(app, path=None, group_by="url_rule", excluded_paths=[f"^{PATH}$"], registry=CollectorRegistry())

    app.add_url_rule(PATH, "invocations", lambda: _refuse_invocation(app), methods=["POST"])
    app.add_url_rule("/ping", "ping", _alive)
    app.add_url_rule("/health", "health", _alive)
    app.add_url_rule("/version", "version", _version)
    app.add_url_rule("/ready", "ready", lambda: _ready(app))
    app.add_url_rule("/model", "model", lambda: _model(app))
    app.add_url_rule("/metrics", "metrics", _metrics)
    app.add_url_rule("/openapi.json", "openapi", lambda: _json(describe(app.settings, app.model)))
    return app


# --- the protocol --------------------------------------------------------------------------------------------------


def _refuse_invocation(app: ModelServer) -> Response:
    # What can be answered never comes here: see invocations.Invocations.
    error: Exception | None = request.environ.get(ERROR_KEY)
    retry_after = str(max(1, round(app.settings.refresh_interval)))
    raise error or NoModelError(_NO_MODEL, headers={"Retry-After": retry_after})


def _alive() -> Response:
    return Response("\n", mimetype="application/json")


def _version() -> Response:
    return Response(package_version("mlflow-skinny"), mimetype="application/json")


# --- for the operator ----------------------------------------------------------------------------------------------


def _ready(app: ModelServer) -> Response:
    if app.model is None:
        raise NoModelError(_NO_MODEL)
    # A worker accepts connections only after its model has answered its example: see gunicorn_config.
    version = app.model.version
    return _json({"status": "ready", "model": version.name, "version": version.version})


def _model(app: ModelServer) -> Response:
    if app.model is None:
        raise NoModelError(_NO_MODEL)
    return _json(app.model.description())


def _metrics() -> Response:
    return Response(generate_latest(metrics.registry()), content_type=CONTENT_TYPE_LATEST)


# --- every answer --------------------------------------------------------------------------------------------------


def _begin() -> None:
    if request.method not in _METHODS:
        # A made-up method is answered 405, and must not make a new time series.
        request.prom_do_not_track = True  # type: ignore[attr-defined]  # prometheus-flask-exporter looks for it


def _finisher(app: ModelServer) -> Callable[[Response], Response]:
    version = app.model.version.version if app.model else None

    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = request_id(request.environ)
        if version is not None:
            response.headers["X-Model-Version"] = version
        return response

    return finish


def _error_handlers(app: ModelServer) -> tuple[Callable[[HTTPException], Response], Callable[[Exception], Response]]:
    def http_error(error: HTTPException) -> Response:
        response = error.get_response()
        code = _HTTP_ERROR_CODES.get(error.code or 500, "BAD_REQUEST")
        body = {"error_code": code, "message": error.description, "request_id": request_id(request.environ)}
        headers = {name: value for name, value in response.headers.items() if name in ("Allow", "Location")}
        return _json(body, error.code or 500, headers)

    def any_error(error: Exception) -> Response:
        if not isinstance(error, RequestError):
            cause = error
            error = ServerError("The server failed on this request. Its log has the reason under the request's id.")
            error.__cause__ = cause
        body = app.error_body(error, request_id(request.environ))
        return Response(body, error.status, error.headers, mimetype="application/json")

    return http_error, any_error


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), status, headers, mimetype="application/json")
