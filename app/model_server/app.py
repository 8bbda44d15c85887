"""The Flask application: MLflow's scoring protocol and what an operator needs beside it."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import version as package_version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_flask_exporter import PrometheusMetrics
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from model_server import encoding, metrics, protocol
from model_server.errors import DeadlineError, ModelFailedError, NoModelError, RequestError, ServerError, TooLargeError
from model_server.openapi import describe
from model_server.predictor import Predictor

if TYPE_CHECKING:
    from model_server.model import ServedModel
    from model_server.settings import Settings

_logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HTTP_ERROR_CODES = {404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR"}
_MODEL_FAILED = "The model failed on this request. The server's log has the reason under the request's id."
_NO_MODEL = "No model is served yet: none is registered under this name and alias. Train one with --tags train."


class ModelServer(Flask):
    """A Flask application with the model it serves."""

    def __init__(self, settings: Settings, model: ServedModel | None) -> None:
        super().__init__("model_server", static_folder=None)
        self.settings = settings
        self.model = model
        self.predictor: Predictor | None = None
        # Werkzeug cuts off a chunked body at this limit without a word: one byte more tells us that it was longer.
        self.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes + 1

    def start_worker(self) -> None:
        """Begin in a worker process: threads do not survive the fork, and metrics belong to a process."""
        settings = self.settings
        self.predictor = Predictor(settings.concurrency, settings.queue_length, settings.request_timeout)
        if self.model is not None:
            version = self.model.version
            metrics.MODEL_INFO.labels(version.name, version.version, version.run_id).set(1)
            metrics.MODEL_LOADED.set(self.model.loaded_at)
            self.model.drift.announce()


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
    PrometheusMetrics(app, path=None, group_by="url_rule", registry=CollectorRegistry())

    app.add_url_rule("/invocations", view_func=_invocations_view(app), methods=["POST"])
    app.add_url_rule("/ping", "ping", _alive)
    app.add_url_rule("/health", "health", _alive)
    app.add_url_rule("/version", "version", _version)
    app.add_url_rule("/ready", "ready", lambda: _ready(app))
    app.add_url_rule("/model", "model", lambda: _model(app))
    app.add_url_rule("/metrics", "metrics", _metrics)
    app.add_url_rule("/openapi.json", "openapi", lambda: _json(describe(app.settings, app.model)))
    return app


# --- the protocol --------------------------------------------------------------------------------------------------


def _invocations_view(app: ModelServer) -> Any:
    model, settings = app.model, app.settings
    predictions = None if model is None else metrics.PREDICTIONS.labels(model.version.name, model.version.version)
    paths = {path: metrics.PATHS.labels(path) for path in ("fast", "pyfunc")}
    observer = None if model is None else model.observer

    def invocations() -> Response:
        arrived = perf_counter()
        metrics.IN_FLIGHT.inc()
        try:
            if model is None or app.predictor is None or predictions is None:
                raise NoModelError(_NO_MODEL, headers={"Retry-After": str(max(1, round(settings.refresh_interval)))})
            media_type = protocol.media_type(request.headers.get("Content-Type"))
            invocation = model.read(media_type, _body(settings.max_body_bytes))
            try:
                answer, queued, predicted = app.predictor.run(invocation.call)
                body = encoding.predictions(answer) if invocation.wrapped else encoding.dumps(answer)
            except RequestError:
                raise
            except Exception as error:
                raise ModelFailedError(_MODEL_FAILED) from error
            metrics.QUEUE_SECONDS.observe(queued)
            metrics.PREDICT_SECONDS.observe(predicted)
            metrics.BATCH_ROWS.observe(invocation.rows)
            predictions.inc(invocation.rows)
            paths[invocation.path].inc()
            model.drift.observe(invocation.data, answer, observer)
            return Response(body, mimetype="application/json")
        finally:
            metrics.IN_FLIGHT.dec()
            metrics.TOTAL_SECONDS.observe(perf_counter() - arrived)

    return invocations


def _body(limit: int) -> bytes:
    body = request.get_data(cache=False)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"The body is larger than {limit} bytes.")


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
    given = request.headers.get("X-Request-Id")
    g.request_id = given if given and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()
    if request.method not in _METHODS:
        # A made-up method is answered 405, and must not make a new time series.
        request.prom_do_not_track = True  # type: ignore[attr-defined]


def _finisher(app: ModelServer) -> Callable[[Response], Response]:
    version = app.model.version.version if app.model else None

    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        if version is not None:
            response.headers["X-Model-Version"] = version
        return response

    return finish


def _error_handlers(app: ModelServer) -> tuple[Callable[[HTTPException], Response], Callable[[Exception], Response]]:
    debug = app.settings.debug

    def answer(error: RequestError) -> Response:
        if request.path == "/invocations":
            metrics.ERRORS.labels(error.kind).inc()
        return _json(error.body(g.request_id, debug), error.status, error.headers)

    def http_error(error: HTTPException) -> Response:
        if isinstance(error, RequestEntityTooLarge):
            return answer(_too_large(app.settings.max_body_bytes))
        response = error.get_response()
        code = _HTTP_ERROR_CODES.get(error.code or 500, "BAD_REQUEST")
        body = {"error_code": code, "message": error.description, "request_id": g.request_id}
        headers = {name: value for name, value in response.headers.items() if name in ("Allow", "Location")}
        return _json(body, error.code or 500, headers)

    def any_error(error: Exception) -> Response:
        if isinstance(error, ModelFailedError):
            _logger.error("the model failed", extra={"request_id": g.request_id}, exc_info=error.__cause__)
        elif isinstance(error, DeadlineError):
            _logger.warning("a prediction was not there in time", extra={"request_id": g.request_id})
        if not isinstance(error, RequestError):
            _logger.error("a request failed in the server", extra={"request_id": g.request_id}, exc_info=error)
            error = ServerError("The server failed on this request. Its log has the reason under the request's id.")
        if debug and error.__cause__ is not None:
            error.detail = "".join(traceback.format_exception(error.__cause__))
        return answer(error)

    return http_error, any_error


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), status, headers, mimetype="application/json")
