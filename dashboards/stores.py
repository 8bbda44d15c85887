"""PostgreSQL and MLflow: where runs, models and their history are kept."""

from __future__ import annotations

from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import parts
from dashboards.parts import BLUE, GREEN, RATE, RED, UP_OR_DOWN, YELLOW

OURS = 'datname!~"template.*|postgres"'
SQLITE = "no PostgreSQL here"
MLFLOW_ERRORS = parts.share(
    f'sum(rate(mlflow_http_request_total{{status=~"5.."}}[{RATE}]))', f"sum(rate(mlflow_http_request_total[{RATE}]))"
)


def mlflow_quantile(of: float) -> str:
    """A quantile of the seconds in which MLflow answers."""
    return f"histogram_quantile({of}, sum by (le) (rate(mlflow_http_request_duration_seconds_bucket[{RATE}])))"


def dashboard() -> Dashboard:
    """The dashboard."""
    return parts.dashboard(
        "mlops-stores",
        "PostgreSQL and MLflow",
        "Where runs and models are kept: does MLflow answer, how fast, and is its database well.",
        [
            (
                "Does MLflow answer?",
                [
                    parts.number(
                        "MLflow",
                        "Whether Prometheus reaches it.",
                        ('min(up{job="mlflow"})', "MLflow"),
                        unit="short",
                        mapping=UP_OR_DOWN,
                        levels=(RED, 1, GREEN),
                        trend=False,
                    ),
                    parts.number(
                        "Requests",
                        "From clients, the UI and the model server; one each 10 s is the health check's.",
                        (f"sum(rate(mlflow_http_request_total[{RATE}]))", "rate"),
                        unit="reqps",
                        levels=(BLUE,),
                    ),
                    parts.number(
                        "Errors",
                        "Share of requests that MLflow could not answer (5xx).",
                        (MLFLOW_ERRORS, "5xx"),
                        unit="percentunit",
                        levels=(GREEN, 0.01, YELLOW, 0.05, RED),
                    ),
                    parts.number(
                        "p99",
                        "99 of 100 requests are answered within this time.",
                        (mlflow_quantile(0.99), "p99"),
                        unit="s",
                        levels=(GREEN, 1, YELLOW, 5, RED),
                    ),
                    parts.number(
                        "Version",
                        "Of MLflow.",
                        ("max by (mlflow_version) (mlflow_http_request_duration_seconds_count)", "{{mlflow_version}}"),
                        unit="short",
                        span=8,
                        levels=(BLUE,),
                        name_only=True,
                        trend=False,
                    ),
                    parts.graph(
                        "Requests by method and status",
                        "GET reads. POST logs, and searches. 404 is also the answer to a question for a model that is "
                        "not there yet.",
                        (
                            f"sum by (method, status) (rate(mlflow_http_request_total[{RATE}]))",
                            "{{method}} {{status}}",
                        ),
                        unit="reqps",
                        stack=True,
                    ),
                    parts.graph(
                        "Time to answer",
                        "Half, nine of ten, and 99 of 100 requests are answered within these times.",
                        (mlflow_quantile(0.5), "p50"),
                        (mlflow_quantile(0.9), "p90"),
                        (mlflow_quantile(0.99), "p99"),
                        unit="s",
                    ),
                ],
            ),
            (
                "Is PostgreSQL well?",
                [
                    parts.number(
                        "PostgreSQL",
                        "Whether the exporter reaches it.",
                        ("min(pg_up)", "PostgreSQL"),
                        unit="short",
                        mapping=UP_OR_DOWN,
                        levels=(RED, 1, GREEN),
                        trend=False,
                        none=SQLITE,
                    ),
                    parts.number(
                        "Connections",
                        "Share of the connections it allows that are in use.",
                        ("sum(pg_stat_database_numbackends) / max(pg_settings_max_connections)", "in use"),
                        unit="percentunit",
                        levels=(GREEN, 0.7, YELLOW, 0.9, RED),
                        none=SQLITE,
                    ),
                    parts.number(
                        "Found in memory",
                        "Share of blocks that were in PostgreSQL's own cache. Much below 0.95 for long: it wants "
                        "more memory.",
                        (
                            (
                                f"sum(pg_stat_database_blks_hit{{{OURS}}}) / (sum(pg_stat_database_blks_hit{{{OURS}}})"
                                f" + sum(pg_stat_database_blks_read{{{OURS}}}))"
                            ),
                            "hits",
                        ),
                        unit="percentunit",
                        levels=(RED, 0.8, YELLOW, 0.95, GREEN),
                        none=SQLITE,
                    ),
                    parts.number(
                        "Size",
                        "Of the databases.",
                        (f"sum(pg_database_size_bytes{{{OURS}}})", "size"),
                        unit="bytes",
                        levels=(BLUE,),
                        none=SQLITE,
                    ),
                    parts.number(
                        "Longest transaction",
                        "One that stays open for long keeps locks and old rows.",
                        ("max(pg_stat_activity_max_tx_duration)", "open for"),
                        unit="s",
                        levels=(GREEN, 60, YELLOW, 600, RED),
                        none=SQLITE,
                    ),
                    parts.number(
                        "Deadlocks in 24 h",
                        "Transactions that PostgreSQL ended because they waited for each other.",
                        (f"sum(increase(pg_stat_database_deadlocks{{{OURS}}}[24h]))", "deadlocks"),
                        unit="short",
                        decimals=0,
                        levels=(GREEN, 1, RED),
                        none=SQLITE,
                    ),
                ],
            ),
            (
                "What does PostgreSQL do?",
                [
                    parts.graph(
                        "Transactions",
                        "Committed, and rolled back.",
                        (f"sum(rate(pg_stat_database_xact_commit{{{OURS}}}[{RATE}]))", "committed"),
                        (f"sum(rate(pg_stat_database_xact_rollback{{{OURS}}}[{RATE}]))", "rolled back"),
                        unit="ops",
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Rows",
                        "Read and changed.",
                        (f"sum(rate(pg_stat_database_tup_fetched{{{OURS}}}[{RATE}]))", "fetched"),
                        (f"sum(rate(pg_stat_database_tup_inserted{{{OURS}}}[{RATE}]))", "inserted"),
                        (f"sum(rate(pg_stat_database_tup_updated{{{OURS}}}[{RATE}]))", "updated"),
                        (f"sum(rate(pg_stat_database_tup_deleted{{{OURS}}}[{RATE}]))", "deleted"),
                        unit="rowsps",
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Connections by state",
                        "idle in transaction for long is a client that forgot to commit.",
                        (f"sum by (state) (pg_stat_activity_count{{{OURS}}})", "{{state}}"),
                        unit="short",
                        span=8,
                        stack=True,
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Locks",
                        "Held or waited for, by mode. Exclusive ones for long stop the others.",
                        (f"sum by (mode) (pg_locks_count{{{OURS}}}) > 0", "{{mode}}"),
                        unit="short",
                        span=8,
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Written to temporary files",
                        "Sorts that did not fit into work_mem.",
                        (f"sum(rate(pg_stat_database_temp_bytes{{{OURS}}}[{RATE}]))", "temporary"),
                        unit="Bps",
                        span=8,
                        none=SQLITE,
                    ),
                ],
            ),
            (
                "Does PostgreSQL's housekeeping keep up?",
                [
                    parts.bars(
                        "Largest tables",
                        "With their indexes.",
                        ("topk(8, pg_stat_user_tables_size_bytes)", "{{relname}}"),
                        unit="bytes",
                        span=6,
                        levels=(BLUE,),
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Dead rows",
                        "Share of rows that were changed or deleted and not cleared away. Autovacuum keeps it below "
                        "about 0.2.",
                        (
                            (
                                "sum(pg_stat_user_tables_n_dead_tup)"
                                " / (sum(pg_stat_user_tables_n_dead_tup + pg_stat_user_tables_n_live_tup) > 0)"
                            ),
                            "dead",
                        ),
                        unit="percentunit",
                        span=6,
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Checkpoints",
                        "In an hour. Those asked for, rather than due, mean that much is written at once.",
                        ("round(increase(pg_stat_checkpointer_num_timed_total[1h]))", "due"),
                        ("round(increase(pg_stat_checkpointer_num_requested_total[1h]))", "asked for"),
                        unit="short",
                        span=6,
                        none=SQLITE,
                    ),
                    parts.graph(
                        "Write-ahead log",
                        "Space that it takes. One that only grows: an archive or a replica does not fetch it.",
                        ("pg_wal_size_bytes", "log"),
                        unit="bytes",
                        span=6,
                        none=SQLITE,
                    ),
                ],
            ),
        ],
    )
