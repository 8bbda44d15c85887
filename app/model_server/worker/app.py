"""The application of a worker: predictions by :class:`Scoring`, everything else by Flask."""

from __future__ import annotations

import gc
import logging
import platform
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import orjson
from flask import Flask, request
from flask import Response as FlaskResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_flask_exporter import PrometheusMetrics
from werkzeug.exceptions import HTTPException, NotFound

from model_server.common import contract, environment, metrics, situation
from model_server.worker import pages, v2, wsgi_bridge
from model_server.worker.errors import (
    DeadlineError,
    ModelFailedError,
    NoModelError,
    RequestError,
    ServerError,
    UnknownModelError,
)
from model_server.worker.http import Request, Response
from model_server.worker.openapi import describe
from model_server.worker.scoring import PATH, Scored, Scoring

if TYPE_CHECKING:
    from model_server.common.settings import Settings
    from model_server.common.store import StoredModel
    from model_server.worker.model import ServedModel

_logger = logging.getLogger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_HTTP_ERROR_CODES = {404: "ENDPOINT_NOT_FOUND", 500: "INTERNAL_ERROR"}


class ModelLoadError(Exception):
    """A model version cannot be loaded."""


class ModelServer(Flask):
    """A Flask application with the model it serves.

    It is what Gunicorn loads; the :mod:`loop <model_server.worker.loop>` asks :meth:`predicts`, :meth:`answer` and
    :meth:`refuse`.

    Args:
        settings: of the server.
        stored: the version to serve, or None while there is none.
    """

    def __init__(self, settings: Settings, stored: StoredModel | None) -> None:
        super().__init__("model_server", static_folder=None)
        self.url_map.merge_slashes = False
        self.settings = settings
        self.stored = stored
        self.signed = False
        """Whether the version has a signature that fits."""
        self.model: ServedModel | None = None
        self._scoring: Scoring | None = None

    def load(self) -> None:
        """Load the model, if there is one and it is not loaded yet.

        Raises:
            ModelLoadError: when its code cannot be run here; the message has the reason.
        """
        if self.stored is None or self.model is not None:
            return
        import numpy

        from model_server.worker.model import ServedModel

        # Its generator was seeded when it was imported, before the fork: workers would all draw the same numbers.
        numpy.random.seed()
        try:
            self.model = ServedModel.load(self.stored, self.settings.max_rows, self.settings.max_body_bytes)
        except BaseException as error:
            raise ModelLoadError(f"it cannot be loaded: {type(error).__name__}: {error}") from error

    def begin(self) -> None:
        """Load the model, have it answer its own example, and be ready to answer in this process.

        After the fork: threads, event loops, random numbers and devices that a model has do not survive one.

        Raises:
            ModelLoadError: when its code cannot be run here.
            ExampleError: when its code fails on its own example while another version serves.
            ExampleMismatchError: when it answers its own example otherwise than at training time.
        """
        self.load()
        if self.model is None:
            return
        from model_server.worker.model import ExampleError

        try:
            if not self.model.answer_example():
                _logger.warning("the model was logged without an input example: only its loading was checked")
        except ExampleError as error:
            # What MLflow's server would serve is served, but does not take the place of what works.
            if contract.replaces_another() and not isinstance(error.__cause__, RequestError):
                raise
            _logger.warning("the model is served all the same", extra={"doubt": self.model.doubt})
        version = self.model.version
        self._scoring = Scoring(self.model)
        metrics.MODEL_INFO.labels(version.name, version.version, version.run_id).set(1)
        digest = environment.of_this_process().digest
        metrics.ENVIRONMENT_INFO.labels(version.version, digest, platform.python_version()).set(1)
        metrics.MODEL_LOADED.set(self.model.loaded_at)
        self.model.drift.announce()
        # Full collections would look at all of the model again and again.
        gc.collect()
        gc.freeze()

    # --- what the loop asks ---

    def predicts(self, request: Request) -> bool:
        """Whether a request takes one of the places for predictions."""
        return self._scoring is not None and request.path in self._scoring.paths and request.method == "POST"

    def answer(self, request: Request) -> Response:
        """Answer a request.

        Raises:
            LargeRequestError: when a worker for large requests is to answer it.
        """
        if self._scoring is None or not request.predicts:
            return wsgi_bridge.answer(self.wsgi_app, request)
        try:
            return self._scoring.answer(request)
        except RequestError as error:
            return self.refuse(request, error)

    def refuse(self, request: Request, error: RequestError) -> Response:
        """Answer a request with an error, which is logged and counted unless it has been answered already."""
        if not request.abandoned or isinstance(error, DeadlineError):
            self._record(request, error)
        headers = {"Content-Type": "application/json", "X-Request-Id": request.id, **error.headers}
        if self.model is not None:
            headers["X-Model-Version"] = self.model.version.version
        body = error.body(request.id, self.settings.debug)
        if v2.speaks(request.path):
            body = v2.error_body(body)
        return Response(error.status, headers.items(), orjson.dumps(body))

    def count(self, scored: Sequence[Scored]) -> None:
        """Count predictions that were answered."""
        if self._scoring is not None:
            self._scoring.count(scored)

    def _record(self, request: Request, error: RequestError) -> None:
        if isinstance(error, ModelFailedError):
            _logger.error("the model failed", extra={"request_id": request.id}, exc_info=error.__cause__)
        elif isinstance(error, ServerError):
            _logger.error("a request failed in the server", extra={"request_id": request.id}, exc_info=error.__cause__)
        elif isinstance(error, DeadlineError):
            _logger.warning("a prediction was not there in time", extra={"request_id": request.id})
        if self.settings.debug and error.__cause__ is not None:
            error.detail = "".join(traceback.format_exception(error.__cause__))
        metrics.ERRORS.labels(error.kind).inc()
        metrics.count_requests(error.status, request.client)


def create_app(settings: Settings, stored: StoredModel | None) -> ModelServer:
    """The application for one model version, or for none yet.

    Call :meth:`ModelServer.begin` in the process that answers requests.
    """
    app = ModelServer(settings, stored)
    app.before_request(_begin)
    app.after_request(_finisher(app))
    http_error, any_error = _error_handlers(app)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, any_error)
    # The default metrics of every route. Its own endpoint is off: /metrics sums over the slots of all processes.
    # Of predictions it would see only those that cannot be made; metrics.REQUESTS counts them all.
    PrometheusMetrics(
        app,
        path=None,
        group_by="url_rule",
        excluded_paths=[f"^{PATH}$", f"^{v2.PATH}/.*/infer$"],
        registry=CollectorRegistry(),
    )

    app.add_url_rule(PATH, "invocations", lambda: _refuse_invocation(app), methods=["POST"])
    app.add_url_rule("/ping", "ping", _alive)
    app.add_url_rule("/health", "health", _alive)
    app.add_url_rule("/version", "version", _version)
    app.add_url_rule("/ready", "ready", lambda: _ready(app))
    app.add_url_rule("/model", "model", lambda: _model(app))
    app.add_url_rule("/metrics", "metrics", _metrics)
    app.add_url_rule("/openapi.json", "openapi", lambda: _json(describe(app.settings, app.model)))
    _add_v2_to(app)
    pages.add_to(app)
    return app


# --- the protocol --------------------------------------------------------------------------------------------------


def _refuse_invocation(app: ModelServer) -> FlaskResponse:
    # With a model, predictions never come here.
    retry_after = str(max(1, round(app.settings.refresh_interval)))
    raise NoModelError(situation.absence(), headers={"Retry-After": retry_after})


def _alive() -> FlaskResponse:
    return FlaskResponse("\n", mimetype="application/json")


def _version() -> FlaskResponse:
    return FlaskResponse(package_version("mlflow-skinny"), mimetype="application/json")


# --- the V2 protocol -----------------------------------------------------------------------------------------------


def _add_v2_to(app: ModelServer) -> None:
    app.add_url_rule(v2.PATH, "v2", lambda: _json(v2.server()))
    app.add_url_rule(f"{v2.PATH}/health/live", "v2_live", lambda: _json({"live": True}))
    app.add_url_rule(f"{v2.PATH}/health/ready", "v2_ready", lambda: _v2_ready(app))
    for number, path in enumerate((f"{v2.PATH}/models/<name>", f"{v2.PATH}/models/<name>/versions/<version>")):
        app.add_url_rule(path, f"v2_model_{number}", partial(_v2_model, app))
        app.add_url_rule(f"{path}/ready", f"v2_model_ready_{number}", partial(_v2_model_ready, app))
        app.add_url_rule(f"{path}/infer", f"v2_infer_{number}", partial(_refuse_v2, app), methods=["POST"])


def _v2_ready(app: ModelServer) -> FlaskResponse:
    if app.model is None:
        raise NoModelError(situation.absence())
    return _json({"ready": True})


def _v2_model(app: ModelServer, name: str, version: str | None = None) -> FlaskResponse:
    model = _asked_model(app, name, version)
    served = model.version
    return _json({"name": served.name, "versions": [served.version], "platform": "mlflow", **model.form.metadata()})


def _v2_model_ready(app: ModelServer, name: str, version: str | None = None) -> FlaskResponse:
    served = _asked_model(app, name, version).version
    return _json({"name": served.name, "ready": True})


def _refuse_v2(app: ModelServer, name: str, version: str | None = None) -> FlaskResponse:
    # With this model, predictions never come here.
    _asked_model(app, name, version)
    raise NotFound


def _asked_model(app: ModelServer, name: str, version: str | None) -> ServedModel:
    """The model that is served, when it is the one that is asked for."""
    if name != app.settings.model.name or (app.model and version not in (None, app.model.version.version)):
        raise UnknownModelError("No such model, or not this version of it, is served here: GET /model tells which is.")
    if app.model is None:
        _refuse_invocation(app)
        raise AssertionError
    return app.model


# --- for the operator ----------------------------------------------------------------------------------------------


def _ready(app: ModelServer) -> FlaskResponse:
    if app.model is None:
        raise NoModelError(situation.absence())
    # A worker accepts connections only after its model has answered its example: see gunicorn_config.
    version = app.model.version
    return _json({"status": "ready", "model": version.name, "version": version.version})


def _model(app: ModelServer) -> FlaskResponse:
    if app.model is None:
        raise NoModelError(situation.absence())
    told = {
        **app.model.description(),
        **environment.description(platform.python_version()),
        "signed": app.signed,
        "rejected": situation.rejection() or None,
        "coming": situation.progress() or None,
    }
    return _json(told)


def _metrics() -> FlaskResponse:
    return FlaskResponse(generate_latest(metrics.registry()), content_type=CONTENT_TYPE_LATEST)


# --- every answer --------------------------------------------------------------------------------------------------


def _begin() -> None:
    if _asked().path.startswith("//"):
        # Another path, as for MLflow's server; Werkzeug takes one of the slashes away.
        raise NotFound
    if request.method not in _METHODS:
        # A made-up method is answered 405, and must not make a new time series.
        request.prom_do_not_track = True  # type: ignore[attr-defined]  # prometheus-flask-exporter looks for it


def _finisher(app: ModelServer) -> Callable[[FlaskResponse], FlaskResponse]:
    def finish(response: FlaskResponse) -> FlaskResponse:
        response.headers["X-Request-Id"] = _asked().id
        if app.model is not None:
            response.headers["X-Model-Version"] = app.model.version.version
        return response

    return finish


def _error_handlers(
    app: ModelServer,
) -> tuple[Callable[[HTTPException], FlaskResponse], Callable[[Exception], FlaskResponse]]:
    def http_error(error: HTTPException) -> FlaskResponse:
        if error.code == 404 and (path := _without_slash(app)) is not None:
            return FlaskResponse(status=307, headers={"Location": path})
        response = error.get_response()
        code = _HTTP_ERROR_CODES.get(error.code or 500, "BAD_REQUEST")
        body = {"error_code": code, "message": error.description, "request_id": _asked().id}
        if v2.speaks(_asked().path):
            body = v2.error_body(body)
        headers = {name: value for name, value in response.headers.items() if name in ("Allow", "Location")}
        return _json(body, error.code or 500, headers)

    def any_error(error: Exception) -> FlaskResponse:
        if not isinstance(error, RequestError):
            cause = error
            error = ServerError("The server failed on this request. Its log has the reason under the request's id.")
            error.__cause__ = cause
        refusal = app.refuse(_asked(), error)
        return FlaskResponse(refusal.body, refusal.status, dict(refusal.headers))

    return http_error, any_error


def _asked() -> Request:
    asked: Request = request.environ[wsgi_bridge.REQUEST_KEY]
    return asked


def _without_slash(app: ModelServer) -> str | None:
    """Where a request for a path of ours with a slash too many should go, as MLflow's server says it."""
    path = request.path.removesuffix("/")
    known = {rule.rule for rule in app.url_map.iter_rules()}
    if path == request.path or path not in known:
        return None
    query = request.environ["QUERY_STRING"]
    return f"{path}?{query}" if query else path


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> FlaskResponse:
    return FlaskResponse(
        orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), status, headers, mimetype="application/json"
    )
