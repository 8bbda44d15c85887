"""Every alert says how bad it is, what is wrong, and where it stands what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "roles" / "prometheus" / "files" / "rules" / "alerts.yml"
PAGE = "docs/monitoring.md"
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert "$value" in rule["annotations"]["description"]
    assert rule["annotations"]["runbook"] == f"{PAGE}#{name.lower()}"


def test_the_page_has_every_alert_in_order_with_its_severity_and_delay() -> None:
    sections = re.findall(
        r"^### (\w+)\n\n\*(\w+)(?:, after (\d+) (\w+?)s?)?\.\*", (ROOT / PAGE).read_text(), re.MULTILINE
    )
    units = {"minute": "m", "hour": "h"}
    documented = [(name, level, f"{number}{units[unit]}" if unit else None) for name, level, number, unit in sections]
    assert documented == [(name, rule["labels"]["severity"], rule.get("for")) for name, rule in ALERTS.items()]


def test_every_alert_has_a_test_of_when_it_fires_and_when_it_does_not() -> None:
    document = yaml.safe_load((ROOT / "tests" / "prometheus" / "alerts.yml").read_text())
    outcomes: dict[str, set[bool]] = {}
    for test in document["tests"]:
        for case in test["alert_rule_test"]:
            outcomes.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert outcomes == {name: {True, False} for name in ALERTS}
