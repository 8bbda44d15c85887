"""``POST /invocations``, the one path that has to be fast: from a request's bytes to the model and back, without Flask.

The V2 protocol's ``infer`` goes the same way. Flask's routing, contexts and hooks take longer than a small model.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from model_server.common import metrics
from model_server.worker import encoding, protocol, v2
from model_server.worker.errors import GoneError, LargeRequestError, ModelFailedError, RequestError, TooLargeError
from model_server.worker.http import Request, Response

if TYPE_CHECKING:
    from model_server.worker.model import Invocation, ServedModel

PATH = "/invocations"
_JSON = [("Content-Type", protocol.JSON)]
_MODEL_FAILED = "The model failed on this request. The server's log has the reason under the request's id."


@dataclass(slots=True)
class Scored:
    """What is counted of a prediction."""

    invocation: Invocation
    answer: Any
    seconds: float
    """That the model ran."""
    client: str
    """Who asked."""


class Scoring:
    """Answers predictions with one model.

    Args:
        model: what answers.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._version = model.version.version
        self._observer = model.observer
        # As a request's path has it: one character for each byte.
        name = f"{v2.PATH}/models/{model.version.name}".encode().decode("latin-1")
        self.paths = frozenset({PATH, f"{name}/infer", f"{name}/versions/{self._version}/infer"})
        """Where predictions are asked for."""
        self._predictions = metrics.PREDICTIONS.labels(model.version.name, self._version)
        self._paths = {path: metrics.PATHS.labels(path) for path in ("fast", "pyfunc")}

    def answer(self, request: Request) -> Response:
        """The predictions for a request.

        Raises:
            RequestError: when there are none.
            LargeRequestError: when another worker is to answer it.
        """
        content_type = request.header("content-type")
        try:
            if request.path == PATH:
                media_type = protocol.media_type(content_type)
                invocation = self._model.read(media_type, request.body, small=request.small)
            else:
                v2.check_media_type(content_type)
                header_length = request.header(v2.HEADER_LENGTH.lower())
                invocation = self._model.read_v2(request.body, header_length, small=request.small)
        except TooLargeError:
            if request.small:
                raise LargeRequestError from None
            raise
        if request.gone:
            raise GoneError("The client left before its prediction began.")
        begun = perf_counter()
        try:
            answer = _call(invocation)
            predicted = perf_counter() - begun
            content = _JSON
            if invocation.reply is not None:
                content, body = invocation.reply.encode(answer)
            else:
                body = encoding.predictions(answer) if invocation.wrapped else encoding.dumps(answer)
        except RequestError:
            raise
        except Exception as error:
            raise ModelFailedError(_MODEL_FAILED) from error
        headers = [
            *content,
            ("X-Request-Id", request.id),
            ("X-Model-Version", self._version),
        ]
        return Response(200, headers, body, Scored(invocation, answer, predicted, request.client))

    def count(self, scored: Sequence[Scored]) -> None:
        """Count predictions that were answered."""
        rows = [one.invocation.rows for one in scored]
        for client, count in Counts(one.client for one in scored).items():
            metrics.count_requests(200, client, count)
        self._predictions.inc(sum(rows))
        for path, counter in self._paths.items():
            counter.inc(sum(one.invocation.path == path for one in scored))
        metrics.observe(metrics.PREDICT_SECONDS, [one.seconds for one in scored])
        metrics.observe(metrics.BATCH_ROWS, rows)
        self._model.drift.observe([(one.invocation.data, one.answer) for one in scored], self._observer)


def _call(invocation: Invocation) -> Any:
    try:
        return invocation.call()
    except Exception:
        raise
    except BaseException as error:
        # SystemExit and the like end a process; a model has no say in that.
        raise RuntimeError("the model tried to exit") from error
