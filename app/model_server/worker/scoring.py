"""``POST /invocations``, the one path that has to be fast: from a request's bytes to the model and back, without Flask.

Flask's routing, contexts and hooks take longer than a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from model_server.common import metrics
from model_server.worker import encoding, protocol
from model_server.worker.errors import ModelFailedError, RequestError
from model_server.worker.http import Request, Response

if TYPE_CHECKING:
    from model_server.worker.model import Invocation, ServedModel

PATH = "/invocations"
_MODEL_FAILED = "The model failed on this request. The server's log has the reason under the request's id."


@dataclass(slots=True)
class Scored:
    """What is counted of a prediction."""

    invocation: Invocation
    answer: Any
    seconds: float
    """That the model ran."""


class Scoring:
    """Answers predictions with one model.

    Args:
        model: what answers.
    """

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._version = model.version.version
        self._observer = model.observer
        self._predictions = metrics.PREDICTIONS.labels(model.version.name, self._version)
        self._paths = {path: metrics.PATHS.labels(path) for path in ("fast", "pyfunc")}
        self._answered = metrics.REQUESTS.labels("200")

    def answer(self, request: Request) -> Response:
        """The predictions for a request.

        Raises:
            RequestError: when there are none.
        """
        invocation = self._model.read(protocol.media_type(request.header("content-type")), request.body)
        begun = perf_counter()
        try:
            answer = _call(invocation)
            predicted = perf_counter() - begun
            body = encoding.predictions(answer) if invocation.wrapped else encoding.dumps(answer)
        except RequestError:
            raise
        except Exception as error:
            raise ModelFailedError(_MODEL_FAILED) from error
        headers = [
            ("Content-Type", "application/json"),
            ("X-Request-Id", request.id),
            ("X-Model-Version", self._version),
        ]
        return Response(200, headers, body, Scored(invocation, answer, predicted))

    def count(self, scored: Sequence[Scored]) -> None:
        """Count predictions that were answered."""
        rows = [one.invocation.rows for one in scored]
        self._answered.inc(len(scored))
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
