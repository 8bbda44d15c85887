"""ML Pipeline Monitoring: the overview. Is everything up, which model answers, how well, and is there a backup."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import application, parts, system
from dashboards.parts import BLUE, GREEN, RATE, RED, UP_OR_DOWN, YELLOW

FIRING = parts.otherwise('max by (alertname) (ALERTS{alertstate="firing"})', "alertname", "none")
TRAINED = "mlops_training_last_run_timestamp_seconds"
SERVED = parts.otherwise("max by (model, version) (model_server_model_info)", "model", "no model")


def dashboard() -> Dashboard:
    """The dashboard."""
    return parts.dashboard(
        "mlops-ml-pipeline",
        "ML Pipeline Monitoring",
        "The overview: is everything up, which model answers and how well, what was trained, is there a backup.",
        [
            (
                "Is everything up?",
                [
                    parts.number(
                        "Services",
                        "Whether Prometheus reaches each service. If not: journalctl -u mlops-NAME on the host.",
                        ("min by (job) (up)", "{{job}}"),
                        unit="short",
                        span=18,
                        mapping=UP_OR_DOWN,
                        levels=(RED, 1, GREEN),
                        trend=False,
                    ),
                    parts.number(
                        "Alerts firing",
                        "Alerts that hold now; the line below says which. Prometheus has their descriptions.",
                        ('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),
                        unit="short",
                        span=6,
                        levels=(GREEN, 1, RED),
                    ),
                    parts.timeline(
                        "Availability",
                        "When which service was down.",
                        ("min by (job) (up)", "{{job}}"),
                        mapping=UP_OR_DOWN,
                    ),
                    parts.timeline(
                        "Alerts",
                        "When which alert was firing.",
                        (FIRING, "{{alertname}}"),
                        mapping={0: ("none", GREEN), 1: ("firing", RED)},
                    ),
                ],
            ),
            (
                "Which model answers?",
                [
                    parts.number(
                        "Served model",
                        "Model and version that answer requests. None: train one, or look at the registry.",
                        (SERVED, "{{model}} {{version}}"),
                        unit="short",
                        span=6,
                        levels=(YELLOW, 1, GREEN),
                        name_only=True,
                        trend=False,
                    ),
                    parts.number(
                        "In service for",
                        "Since the server loaded this version.",
                        (
                            "time() - max by (model_server) (model_server_model_loaded_timestamp_seconds > 0)",
                            "{{model_server}}",
                        ),
                        unit="s",
                        trend=False,
                        none="no model",
                    ),
                    parts.number(
                        "Switches in 24 h",
                        "Versions that went into service.",
                        ("sum(increase(model_server_model_switches_total[24h]))", "switches"),
                        unit="short",
                        decimals=0,
                        levels=(BLUE,),
                    ),
                    parts.number(
                        "Refused in 24 h",
                        "Versions that did not go into service, because they did not load or did not answer "
                        "their own example. journalctl -u mlops-serving says why.",
                        ("sum(increase(model_server_model_rejections_total[24h])) or vector(0)", "refused"),
                        unit="short",
                        decimals=0,
                        levels=(GREEN, 1, RED),
                    ),
                    parts.number(
                        "Registry seen",
                        "Since MLflow last answered the model server, which serves without it but sees no new version.",
                        ("time() - min(model_server_registry_contact_timestamp_seconds)", "ago"),
                        unit="s",
                        span=6,
                        levels=(GREEN, 60, YELLOW, 300, RED),
                    ),
                    parts.timeline(
                        "Versions in service",
                        "Which version answered when.",
                        (SERVED, "{{model}} {{version}}"),
                        mapping={0: ("none", YELLOW), 1: ("serving", GREEN)},
                        span=24,
                        height=5,
                    ),
                ],
            ),
            (
                "Do requests succeed, and how fast?",
                [
                    parts.number(
                        "Requests",
                        "Predictions asked for per second.",
                        (f"sum({application.requests()}) or vector(0)", "rate"),
                        more="mlops-application",
                        height=parts.GRAPH_HEIGHT,
                        unit="reqps",
                        levels=(BLUE,),
                    ),
                    parts.number(
                        "Errors",
                        "Share of requests that the server could not answer (5xx).",
                        (application.ERROR_SHARE, "errors"),
                        more="mlops-application",
                        height=parts.GRAPH_HEIGHT,
                        unit="percentunit",
                        levels=(GREEN, 0.01, YELLOW, 0.05, RED),
                    ),
                    parts.number(
                        "p99",
                        "99 of 100 requests are answered within this time.",
                        (application.quantile(0.99, "invocation"), "p99"),
                        more="mlops-application",
                        height=parts.GRAPH_HEIGHT,
                        unit="s",
                        levels=(GREEN, 0.25, YELLOW, 1, RED),
                        none="no requests",
                    ),
                    parts.graph(
                        "Requests by status",
                        "Requests to /invocations per second. 4xx are the clients' mistakes, 5xx the server's.",
                        (application.BY_STATUS, "{{status}}"),
                        more="mlops-application",
                        unit="reqps",
                        stack=True,
                    ),
                ],
            ),
            (
                "What is trained, and does the input still look like the training data?",
                [
                    parts.number(
                        "Last training run",
                        "Since a playbook's last training run ended.",
                        (f"time() - max({TRAINED})", "ago"),
                        unit="s",
                        span=8,
                        levels=(BLUE,),
                        none="none yet",
                        trend=False,
                    ),
                    parts.number(
                        "It ended",
                        "Whether that run ended well. If not: journalctl CONTAINER_NAME=mlops-training on the host.",
                        ("min(mlops_training_last_run_success)", "run"),
                        unit="short",
                        span=8,
                        levels=(RED, 1, GREEN),
                        mapping={0: ("failed", RED), 1: ("well", GREEN)},
                        none="none yet",
                        trend=False,
                    ),
                    parts.number(
                        "Runs in 7 days",
                        "Training runs of playbooks.",
                        (
                            f"sum(changes({TRAINED}[7d])) + (count({TRAINED} unless {TRAINED} offset 7d) or vector(0))",
                            "runs",
                        ),
                        unit="short",
                        span=8,
                        levels=(BLUE,),
                        none="none yet",
                        trend=False,
                    ),
                    parts.graph(
                        "Writes to MLflow",
                        "Requests that log runs, metrics and models, and the health check's search each 10 s.",
                        (f'sum by (status) (rate(mlflow_http_request_total{{method="POST"}}[{RATE}]))', "{{status}}"),
                        more="mlops-stores",
                        unit="reqps",
                    ),
                    parts.graph(
                        "Drift",
                        "Population stability index of the last day against the training data, by feature. Below 0.1 "
                        "nothing changed, above 0.25 much did: look at the inputs, and train anew.",
                        (application.DRIFT, "{{feature}}, {{model_server}} {{version}}"),
                        more="mlops-application",
                        unit="none",
                        levels=application.DRIFT_LEVELS,
                        none=application.NO_DRIFT,
                    ),
                ],
            ),
            (
                "Is there room, and a backup?",
                [
                    parts.bars(
                        "Disk used",
                        "By file system. Training and backups fail on a full one.",
                        (system.DISK_USED, "{{mountpoint}}"),
                        more="mlops-system",
                        unit="percentunit",
                        levels=system.DISK_LEVELS,
                        maximum=1,
                    ),
                    parts.number(
                        "Last backup",
                        "Since the last backup succeeded; one is made each day.",
                        ("time() - max(mlops_backup_last_success_timestamp_seconds > 0)", "ago"),
                        height=parts.GRAPH_HEIGHT,
                        unit="s",
                        levels=(GREEN, 93600, YELLOW, 129600, RED),
                        none="no backup",
                        trend=False,
                    ),
                    parts.number(
                        "Backup checked",
                        "Whether the last check of the backup's repository found it whole.",
                        ("min(mlops_backup_check_success)", "check"),
                        height=parts.GRAPH_HEIGHT,
                        unit="short",
                        levels=(RED, 1, GREEN),
                        mapping={0: ("damaged", RED), 1: ("whole", GREEN)},
                        none="no backup",
                        trend=False,
                    ),
                    parts.number(
                        "Snapshots",
                        "Backups that can be restored.",
                        ("max(mlops_backup_snapshots)", "snapshots"),
                        height=parts.GRAPH_HEIGHT,
                        unit="short",
                        levels=(RED, 1, GREEN),
                        none="no backup",
                        trend=False,
                    ),
                ],
            ),
        ],
    )
