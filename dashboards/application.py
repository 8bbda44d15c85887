"""Application Metrics: the model server and the proxy before it."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import parts
from dashboards.parts import BLUE, GREEN, NO_OR_YES, RATE, RED, YELLOW


def requests(matchers: str = "") -> str:
    """The rate of requests for predictions, by everything that tells them apart."""
    return f"rate(model_server_requests_total{matchers}[{RATE}])"


def quantile(of: float, stage: str, by: str = "") -> str:
    """A quantile of the seconds that requests spend in a stage: ``queue``, ``predict``, or ``invocation`` for all."""
    return f"histogram_quantile({of}, sum by ({by}le) (rate(model_server_{stage}_seconds_bucket[{RATE}])))"


def mean(stage: str) -> str:
    """The mean of the seconds that requests spend in a stage."""
    return parts.share(
        f"sum(rate(model_server_{stage}_seconds_sum[{RATE}]))", f"sum(rate(model_server_{stage}_seconds_count[{RATE}]))"
    )


ERRORS_5XX = '{status=~"5.."}'
ERRORS_4XX = '{status=~"4.."}'
BY_STATUS = f"sum by (status) ({requests()})"
ERROR_SHARE = parts.share(f"sum({requests(ERRORS_5XX)})", f"sum({requests()})")
REFUSED_SHARE = parts.share(f"sum({requests(ERRORS_4XX)})", f"sum({requests()})")

# Recorded by Prometheus, for the alerts too.
DRIFT = "model_server_version_feature:model_drift:psi1d"
OBSERVED = "model_server_version_feature:model_observations:increase1d"
DRIFT_LEVELS = (GREEN, 0.1, YELLOW, 0.25, RED)
NO_DRIFT = "no requests in a day, or a model without a profile"


def dashboard() -> Dashboard:
    """The dashboard."""
    return parts.dashboard(
        "mlops-application",
        "Application Metrics",
        "The model server and the proxy before it: who asks, what fails, where the time goes, what the model sees.",
        [
            (
                "Do requests succeed?",
                [
                    parts.number(
                        "Requests",
                        "Predictions asked for per second.",
                        (f"sum({requests()}) or vector(0)", "rate"),
                        unit="reqps",
                        levels=(BLUE,),
                    ),
                    parts.number(
                        "Server errors",
                        "Share of requests answered with 5xx.",
                        (ERROR_SHARE, "5xx"),
                        unit="percentunit",
                        levels=(GREEN, 0.01, YELLOW, 0.05, RED),
                    ),
                    parts.number(
                        "Refused requests",
                        "Share of requests answered with 4xx: malformed, too large, not what the model takes.",
                        (REFUSED_SHARE, "4xx"),
                        unit="percentunit",
                        levels=(GREEN, 0.1, YELLOW, 0.5, RED),
                    ),
                    parts.number(
                        "In flight",
                        "Requests being worked on.",
                        ("sum(model_server_in_flight)", "requests"),
                        unit="short",
                        levels=(GREEN, 50, YELLOW, 100, RED),
                    ),
                    parts.number(
                        "Rows answered",
                        "Predictions per second; a request may ask for many.",
                        (f"sum(rate(model_server_predictions_total[{RATE}])) or vector(0)", "rows"),
                        unit="rowsps",
                        levels=(BLUE,),
                    ),
                    parts.number(
                        "Registry answers",
                        "Whether MLflow answered the model server's last question. Without it no new version is seen.",
                        ("min(model_server_registry_up)", "registry"),
                        unit="short",
                        mapping=NO_OR_YES,
                        levels=(RED, 1, GREEN),
                        trend=False,
                    ),
                    parts.graph(
                        "Requests by status",
                        "Requests to /invocations per second.",
                        (BY_STATUS, "{{status}}"),
                        unit="reqps",
                        span=8,
                        stack=True,
                    ),
                    parts.graph(
                        "Requests by client",
                        "Requests to /invocations per second, by the client of the token or certificate; unnamed "
                        "without one.",
                        (f"sum by (client) ({requests()})", "{{client}}"),
                        unit="reqps",
                        span=8,
                        stack=True,
                    ),
                    parts.graph(
                        "Errors by kind",
                        "malformed, schema, content_type and too_large are the client's; busy is a full queue and "
                        "deadline a slow model: more workers or replicas; model is an exception in the model; no_model "
                        "means that there is nothing to serve.",
                        (
                            parts.otherwise(
                                f"sum by (kind) (rate(model_server_errors_total[{RATE}]))", "kind", "none so far"
                            ),
                            "{{kind}}",
                        ),
                        unit="reqps",
                        span=8,
                    ),
                ],
            ),
            (
                "Which model is it?",
                [
                    parts.graph(
                        "Requests by model",
                        "Predictions asked for per second, by the model server that was asked.",
                        (f"sum by (model_server) ({requests()})", "{{model_server}}"),
                        unit="reqps",
                        span=8,
                        stack=True,
                    ),
                    parts.graph(
                        "Server errors by model",
                        "Requests per second that were answered with 5xx.",
                        (
                            parts.otherwise(f"sum by (model_server) ({requests(ERRORS_5XX)})", "model_server", "none"),
                            "{{model_server}}",
                        ),
                        unit="reqps",
                        span=8,
                    ),
                    parts.graph(
                        "Time to answer by model, p99",
                        "99 of 100 requests are answered within this time.",
                        (quantile(0.99, "invocation", "model_server, "), "{{model_server}}"),
                        unit="s",
                        levels=(GREEN, 1, RED),
                        none="no requests",
                        span=8,
                    ),
                ],
            ),
            (
                "Where does the time go?",
                [
                    parts.graph(
                        "Time to answer",
                        "Half, nine of ten, and 99 of 100 requests are answered within these times.",
                        (quantile(0.5, "invocation"), "p50"),
                        (quantile(0.9, "invocation"), "p90"),
                        (quantile(0.99, "invocation"), "p99"),
                        unit="s",
                        levels=(GREEN, 1, RED),
                        none="no requests",
                    ),
                    parts.graph(
                        "Queue and model",
                        "Mean seconds of a request, waiting and in the model. A queue that grows while the "
                        "model stays as it is wants more workers.",
                        (mean("queue"), "waiting"),
                        (mean("predict"), "in the model"),
                        unit="s",
                        stack=True,
                    ),
                    parts.graph(
                        "Queue and model, p99",
                        "99 of 100 requests spend no longer in each.",
                        (quantile(0.99, "queue"), "waiting"),
                        (quantile(0.99, "predict"), "in the model"),
                        unit="s",
                        none="no requests",
                    ),
                    parts.graph(
                        "Rows per request",
                        "Mean, and the size that 9 of 10 do not exceed. Many rows in one request cost less than "
                        "many requests.",
                        (
                            parts.share(
                                f"sum(rate(model_server_batch_rows_sum[{RATE}]))",
                                f"sum(rate(model_server_batch_rows_count[{RATE}]))",
                            ),
                            "mean",
                        ),
                        (
                            (
                                "ceil(histogram_quantile(0.9, sum by (le)"
                                f" (rate(model_server_batch_rows_bucket[{RATE}]))))"
                            ),
                            "p90",
                        ),
                        unit="short",
                    ),
                ],
            ),
            (
                "What does the model do?",
                [
                    parts.graph(
                        "Predictions by version",
                        "Rows answered per second by each version; a switch hands them over.",
                        (
                            f"sum by (model_server, version) (rate(model_server_predictions_total[{RATE}]))",
                            "{{model_server}} {{version}}",
                        ),
                        unit="rowsps",
                        span=8,
                        stack=True,
                    ),
                    parts.graph(
                        "Way of the input",
                        "Requests that reach the model directly, and those that take MLflow's longer way.",
                        (f"sum by (path) (rate(model_server_input_path_total[{RATE}]))", "{{path}}"),
                        unit="reqps",
                        span=8,
                    ),
                    parts.graph(
                        "Versions put into service and refused",
                        "In an hour. Refused: it did not load, or did not answer its own example.",
                        ("round(sum(increase(model_server_model_switches_total[1h])))", "into service"),
                        (
                            parts.otherwise(
                                "sum by (reason) (increase(model_server_model_rejections_total[1h]))", "reason", "none"
                            ),
                            "refused: {{reason}}",
                        ),
                        unit="short",
                        span=8,
                    ),
                ],
            ),
            (
                "Does the input still look like the training data?",
                [
                    parts.graph(
                        "Drift by feature",
                        "Population stability index of the last day against the training data. Below 0.1 nothing "
                        "changed, above 0.25 much did.",
                        (DRIFT, "{{feature}}, {{model_server}} {{version}}"),
                        unit="none",
                        levels=DRIFT_LEVELS,
                        none=NO_DRIFT,
                    ),
                    parts.graph(
                        "Observations",
                        "Inputs and outputs counted in the last day. With fewer than 500 the index is noise.",
                        (OBSERVED, "{{feature}}, {{model_server}} {{version}}"),
                        unit="short",
                        none=NO_DRIFT,
                    ),
                ],
            ),
            (
                "Does the proxy cope?",
                [
                    parts.graph(
                        "Connections",
                        "Open connections of nginx, by what they do.",
                        ("sum(nginx_connections_reading)", "reading"),
                        ("sum(nginx_connections_writing)", "writing"),
                        ("sum(nginx_connections_waiting)", "waiting"),
                        unit="short",
                        stack=True,
                        span=8,
                    ),
                    parts.graph(
                        "Requests",
                        "All that nginx answered, the MLflow UI included.",
                        (f"sum(rate(nginx_http_requests_total[{RATE}]))", "requests"),
                        unit="reqps",
                        span=8,
                    ),
                    parts.graph(
                        "Connections accepted and dropped",
                        "Dropped ones are over the limit of nginx.",
                        (f"sum(rate(nginx_connections_accepted[{RATE}]))", "accepted"),
                        (
                            f"sum(rate(nginx_connections_accepted[{RATE}]) - rate(nginx_connections_handled[{RATE}]))",
                            "dropped",
                        ),
                        unit="ops",
                        span=8,
                    ),
                ],
            ),
        ],
        since="now-1h",
    )
