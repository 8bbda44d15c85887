"""``POST /invocations``, the one path that has to be fast: WSGI without Flask between a request and its model.

Flask's routing, contexts and hooks take longer than a small model. Everything else of a request to this path, which
is every error, is Flask's, with the exception handed over in the request's environment.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import TYPE_CHECKING, Any

from model_server.common import metrics
from model_server.worker import encoding, protocol
from model_server.worker.errors import DeadlineError, ModelFailedError, RequestError, TooLargeError
from model_server.worker.predictor import AbandonedError, Predictor

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from model_server.worker.model import ServedModel

PATH = "/invocations"
ERROR_KEY = "model_server.error"
"""Where the exception of a request stands in its environment when Flask is to answer it."""
REQUEST_ID_KEY = "model_server.request_id"
# Gunicorn gives the connection to applications that have to write on it themselves.
_SOCKET_KEY = "gunicorn.socket"

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_MODEL_FAILED = "The model failed on this request. The server's log has the reason under the request's id."

ErrorBody = Callable[[RequestError, str], bytes]


def request_id(environ: WSGIEnvironment) -> str:
    """The id of a request: the client's own where it is a plain one, else a new one."""
    if (known := environ.get(REQUEST_ID_KEY)) is None:
        given = environ.get("HTTP_X_REQUEST_ID")
        known = given if given and _REQUEST_ID.fullmatch(given) else os.urandom(8).hex()
        environ[REQUEST_ID_KEY] = known
    return str(known)


class Invocations:
    """WSGI middleware that answers ``POST /invocations`` and hands everything else on.

    Args:
        model: what answers.
        predictor: calls it.
        max_body_bytes: what a request body may have.
        error_body: makes the JSON body of an error; for the one that Flask cannot answer.
        fallback: Flask's application; it answers errors found under :data:`ERROR_KEY`.
    """

    def __init__(
        self,
        model: ServedModel,
        predictor: Predictor,
        max_body_bytes: int,
        error_body: ErrorBody,
        fallback: WSGIApplication,
    ) -> None:
        self._model = model
        self._predictor = predictor
        self._max_body_bytes = max_body_bytes
        self._error_body = error_body
        self._fallback = fallback
        self._version = model.version.version
        self._observer = model.observer
        self._predictions = metrics.PREDICTIONS.labels(model.version.name, self._version)
        self._paths = {path: metrics.PATHS.labels(path) for path in ("fast", "pyfunc")}
        self._answered = metrics.REQUESTS.labels("200")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ["PATH_INFO"] != PATH or environ["REQUEST_METHOD"] != "POST":
            return self._fallback(environ, start_response)
        arrived = perf_counter()
        metrics.IN_FLIGHT.inc()
        try:
            body = self._answer(environ)
        except AbandonedError:
            # The connection is shut; Gunicorn lets go of one that the client has left, which is what this looks like.
            raise OSError(errno.EPIPE, "answered when its time was over") from None
        except Exception as error:  # noqa: BLE001 - Flask's error handlers tell the kinds apart
            environ[ERROR_KEY] = error
            return self._fallback(environ, start_response)
        finally:
            metrics.IN_FLIGHT.dec()
            metrics.TOTAL_SECONDS.observe(perf_counter() - arrived)
        self._answered.inc()
        start_response(
            "200 OK",
            [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("X-Request-Id", request_id(environ)),
                ("X-Model-Version", self._version),
            ],
        )
        return [body]

    def _answer(self, environ: WSGIEnvironment) -> bytes:
        media_type = protocol.media_type(environ.get("CONTENT_TYPE"))
        invocation = self._model.read(media_type, self._body(environ))
        try:
            answer, queued, predicted = self._predictor.run(
                invocation.call, lambda error: self._answer_for_it(environ, error)
            )
            body = encoding.predictions(answer) if invocation.wrapped else encoding.dumps(answer)
        except (RequestError, AbandonedError):
            raise
        except Exception as error:
            raise ModelFailedError(_MODEL_FAILED) from error
        metrics.QUEUE_SECONDS.observe(queued)
        metrics.PREDICT_SECONDS.observe(predicted)
        metrics.BATCH_ROWS.observe(invocation.rows)
        self._predictions.inc(invocation.rows)
        self._paths[invocation.path].inc()
        self._model.drift.observe(invocation.data, answer, self._observer)
        return body

    def _body(self, environ: WSGIEnvironment) -> bytes:
        length = environ.get("CONTENT_LENGTH")
        if length and int(length) > self._max_body_bytes:
            raise self._too_large()
        # One byte more tells that a body of unknown length is longer.
        body: bytes = environ["wsgi.input"].read(int(length) if length else self._max_body_bytes + 1)
        if len(body) > self._max_body_bytes:
            raise self._too_large()
        return body

    def _answer_for_it(self, environ: WSGIEnvironment, error: DeadlineError) -> None:
        """Answer on the connection of a request whose own thread is still in the model."""
        identifier = request_id(environ)
        body = self._error_body(error, identifier)
        head = (
            f"HTTP/1.1 {error.status} Gateway Timeout\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-Id: {identifier}\r\nX-Model-Version: {self._version}\r\n"
            "Connection: close\r\n\r\n"
        )
        connection: Any = environ[_SOCKET_KEY]
        connection.sendall(head.encode("latin-1") + body)
        connection.shutdown(socket.SHUT_RDWR)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"The body is larger than {self._max_body_bytes} bytes.")
