"""The server's own metrics, beside those of prometheus-flask-exporter; sums over all its processes.

Import this module before anything else creates a metric: it decides how metrics are stored.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Sequence

if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    # The first process, the supervisor, makes the directory; those it starts inherit the variable.
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="model-server-metrics-")
    atexit.register(shutil.rmtree, os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.multiprocess import MultiProcessCollector

from model_server.common import slots

values.ValueClass = values.MultiProcessValue(slots.identifier)  # type: ignore[no-untyped-call]  # prometheus_client has no types here

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

_MOST_CLIENTS = 100
_UNNAMED = "unnamed"
_OTHER = "other"
_clients: set[str] = {_UNNAMED}

REQUESTS = Counter(
    "model_server_requests",
    "Requests to /invocations, and unreadable ones, by the status of their answer and by who asked.",
    ["status", "client"],
)
QUEUE_SECONDS = Histogram(
    "model_server_queue_seconds", "Seconds a request waited for its prediction.", buckets=_SECONDS
)
PREDICT_SECONDS = Histogram("model_server_predict_seconds", "Seconds the model ran for a request.", buckets=_SECONDS)
TOTAL_SECONDS = Histogram(
    "model_server_invocation_seconds", "Seconds from a request's arrival to its answer.", buckets=_SECONDS
)
BATCH_ROWS = Histogram(
    "model_server_batch_rows", "Rows per request.", buckets=(1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000, 10000)
)
PREDICTIONS = Counter("model_server_predictions", "Rows answered.", ["model", "version"])
PATHS = Counter("model_server_input_path", "Requests by the way their input took to the model.", ["path"])
ERRORS = Counter(
    "model_server_errors", "Requests to /invocations, and unreadable ones, that were answered with an error.", ["kind"]
)
IN_FLIGHT = Gauge("model_server_in_flight", "Requests to /invocations being worked on.", multiprocess_mode="livesum")
REPLACEMENTS = Counter("model_server_worker_replacements", "Workers that were replaced because their memory had grown.")
MODEL_INFO = Gauge(
    "model_server_model_info",
    "1 for each model version that a live worker serves.",
    ["model", "version", "run_id"],
    multiprocess_mode="livemax",
)
ENVIRONMENT_INFO = Gauge(
    "model_server_environment_info",
    "1 for the environment of what a live worker serves; without a digest it is the image's own packages.",
    ["version", "environment", "python"],
    multiprocess_mode="livemax",
)
MODEL_LOADED = Gauge(
    "model_server_model_loaded_timestamp_seconds",
    "When the model in service was loaded.",
    multiprocess_mode="livemax",
)
DRIFT = Counter(
    "model_server_observed",
    "Observations of inputs and outputs, in the bins of the model's training profile.",
    ["version", "feature", "bin"],
)

DRIFT_EXPECTED = Gauge(
    "model_server_expected_share",
    "The share of the training data in each bin of the model's profile.",
    ["version", "feature", "bin"],
    multiprocess_mode="livemax",
)

# Written by the supervisor.
REGISTRY_UP = Gauge(
    "model_server_registry_up", "Whether the registry answered the last time.", multiprocess_mode="livemax"
)
REGISTRY_CONTACT = Gauge(
    "model_server_registry_contact_timestamp_seconds", "When the registry last answered.", multiprocess_mode="livemax"
)
MODEL_SWITCHES = Counter("model_server_model_switches", "Model versions that went into service.")
ENVIRONMENTS = Counter("model_server_environments", "Versions for which an environment was asked for.", ["result"])
MODEL_REJECTIONS = Counter(
    "model_server_model_rejections", "Model versions that were not put into service.", ["reason"]
)


def count_requests(status: int, client: str, count: int = 1) -> None:
    """Count answers to requests for predictions.

    Args:
        status: of the answers.
        client: who asked, or an empty text where nobody said. Beyond so many names a process counts for ``other``: each
            makes time series.
        count: of the answers.
    """
    name = client or _UNNAMED
    if name not in _clients:
        if len(_clients) < _MOST_CLIENTS:
            _clients.add(name)
        else:
            name = _OTHER
    REQUESTS.labels(str(status), name).inc(count)


def observe(histogram: Histogram, values: Sequence[float]) -> None:
    """Observe many values for little more than the cost of one."""
    for bucket, count in Counts(bisect_left(histogram._upper_bounds, value) for value in values).items():
        histogram._buckets[bucket].inc(count)
    histogram._sum.inc(sum(values))


def registry() -> CollectorRegistry:
    """A registry that sums the files of all processes, as of now."""
    slots.forget_dead()
    collected = CollectorRegistry()
    MultiProcessCollector(collected)  # type: ignore[no-untyped-call]  # prometheus_client has no types here
    return collected
