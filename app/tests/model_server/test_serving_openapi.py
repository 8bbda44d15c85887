"""The server keeps to its own description, whatever it is sent."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serving_harness import Servers, store_model

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_keeps_to_its_description(servers: Servers) -> None:
    models = servers.directory / "models"
    models.mkdir()
    store_model(models, "search", input_example=(["a query"], {"top_k": 2}))
    server = servers.start(SERVING_WORKERS="1")
    description = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    asked = set()
    for result in description.get_all_operations():
        operation = result.ok()
        asked.add(operation.label)

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        check()
    assert "POST /invocations" in asked
    assert server.process.poll() is None
