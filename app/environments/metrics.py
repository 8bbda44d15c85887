"""Metrics of the service."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

INSTALLATIONS = Counter(
    "python_environments_requests",
    "Requests that were worked on, by their answer, or the kind of its refusal.",
    ["result"],
)
SECONDS = Counter("python_environments_seconds", "Seconds that was worked on them.")
COUNT = Gauge("python_environments_count", "Environments on the volume.")
BYTES = Gauge("python_environments_bytes", "Bytes of the volume.")
QUOTA = Gauge("python_environments_quota_bytes", "Bytes that the volume may have.")
