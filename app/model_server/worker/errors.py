"""What is answered when a request cannot be: statuses, MLflow's error codes, JSON bodies that echo nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        message: for the client; says what to do and repeats nothing of what was sent.
        detail: for the log, and for the client under ``SERVING_DEBUG``; may repeat the input.
        headers: added to the answer.
    """

    status = 400
    error_code = "BAD_REQUEST"
    kind = "malformed"
    """The value of the label ``kind`` in the metric of errors."""

    def __init__(self, message: str, *, detail: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self, request_id: str, debug: bool) -> dict[str, Any]:
        """The JSON body: MLflow's ``error_code`` and ``message``, and the id under which the log has the rest."""
        body = {"error_code": self.error_code, "message": self.message, "request_id": request_id}
        if debug and self.detail:
            body["detail"] = self.detail
        return body


class LargeRequestError(Exception):
    """A request that costs more than a small one may: a worker for large ones answers it."""


class SchemaError(RequestError):
    """The input does not fit the model's signature."""

    error_code = "INVALID_PARAMETER_VALUE"
    kind = "schema"


class NotAcceptedError(RequestError):
    """The content type is not one of the protocol's."""

    status = 415
    kind = "content_type"


class TooLargeError(RequestError):
    """More bytes, rows, columns or values than one request may have."""

    status = 413
    kind = "too_large"


class ModelFailedError(RequestError):
    """The model raised an exception; the log has it under the request's id."""

    status = 500
    error_code = "INTERNAL_ERROR"
    kind = "model"


class ServerError(RequestError):
    """A fault of this server's own; the log has it under the request's id."""

    status = 500
    error_code = "INTERNAL_ERROR"
    kind = "server"


class NoModelError(RequestError):
    """There is no model yet."""

    status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"
    kind = "no_model"


class UnknownModelError(RequestError):
    """Another model, or another version of it, is asked for than is served."""

    status = 404
    error_code = "ENDPOINT_NOT_FOUND"
    kind = "unknown_model"


class BusyError(RequestError):
    """The queue is full."""

    status = 503
    error_code = "TEMPORARILY_UNAVAILABLE"
    kind = "busy"


class DeadlineError(RequestError):
    """The prediction was not there in time."""

    status = 504
    error_code = "DEADLINE_EXCEEDED"
    kind = "deadline"


class GoneError(RequestError):
    """Nobody waits for the answer any more. The status is nginx's for it; it is counted, and sent to nobody."""

    status = 499
    kind = "gone"


class NotHttpError(RequestError):
    """What came is no request of HTTP/1.1, or breaks its rules."""

    kind = "http"


class HeadTooLargeError(RequestError):
    """More bytes before the body than a request may have."""

    status = 431
    kind = "too_large"


class RequestTimeoutError(RequestError):
    """The client took too long to send its request."""

    status = 408
    kind = "timeout"
