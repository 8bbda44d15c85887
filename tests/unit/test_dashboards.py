"""The dashboards that Grafana gets are those of the code, and every panel says what it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import FILES, rendered

ROLE = FILES.parents[1]
DASHBOARDS = {path.name: json.loads(path.read_text()) for path in sorted(FILES.glob("*.json"))}
every_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def panels(name: str) -> Iterator[dict[str, Any]]:
    """The panels of a dashboard that show something."""
    return (panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row")


def test_the_files_are_what_the_code_renders() -> None:
    files = {path.name: path.read_text() for path in FILES.iterdir()}
    assert files == rendered(), "run: make dashboards"


def test_the_role_mounts_every_dashboard() -> None:
    variables = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    targets = {item["target"] for item in variables["__grafana_dashboards"]}
    assert {f"/etc/grafana/dashboards/{name}" for name in DASHBOARDS} == targets


def test_the_data_source_of_the_panels_is_the_one_that_is_provisioned() -> None:
    template = (ROLE / "templates" / "datasource.yml.j2").read_text()
    (source,) = yaml.safe_load(re.sub(r"{{.*?}}", "rendered", template))["datasources"]
    for name in DASHBOARDS:
        for panel in panels(name):
            for asked in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
                assert asked == {"type": source["type"], "uid": source["uid"]}, panel["title"]


def test_the_dashboards_can_be_told_apart() -> None:
    for key in ("uid", "title"):
        assert len({document[key] for document in DASHBOARDS.values()}) == len(DASHBOARDS)


@every_dashboard
def test_a_dashboard_is_one_by_grafanas_own_types(name: str) -> None:
    # What the types do not know, reading and writing would lose.
    assert json.loads(json.dumps(Dashboard.from_json(DASHBOARDS[name]).to_json(), default=lambda part: part.to_json()))


@every_dashboard
def test_panels_are_numbered_and_lie_side_by_side(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    numbers = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    width = max(x for x, _ in taken) + 1
    assert width == 24


@every_dashboard
def test_every_row_is_a_question_and_full(name: str) -> None:
    documents = DASHBOARDS[name]["panels"]
    assert documents[0]["type"] == "row"
    for panel in documents:
        if panel["type"] == "row":
            assert panel["title"].endswith("?")
    lines: dict[int, list[dict[str, int]]] = {}
    for panel in documents:
        lines.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    for places in lines.values():
        assert sum(place["w"] for place in places) == 24
        assert len({place["h"] for place in places}) == 1, "side by side and equally high"


@every_dashboard
def test_every_panel_says_what_it_shows(name: str) -> None:
    for panel in panels(name):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        for target in panel["targets"]:
            assert target["legendFormat"], panel["title"]


@every_dashboard
def test_rates_are_over_an_interval_that_follows_the_zoom(name: str) -> None:
    for panel in panels(name):
        for target in panel["targets"]:
            for interval in re.findall(r"rate\([^[]+\[([^]]+)\]", target["expr"]):
                assert interval == "$__rate_interval", panel["title"]


@every_dashboard
def test_a_dashboard_leads_to_the_others(name: str) -> None:
    (link,) = DASHBOARDS[name]["links"]
    assert link["type"] == "dashboards"
    assert set(link["tags"]) <= set(DASHBOARDS[name]["tags"])
    assert link["keepTime"]


@every_dashboard
def test_a_panel_that_leads_to_details_leads_to_a_dashboard(name: str) -> None:
    addresses = {f"/d/{document['uid']}?${{__url_time_range}}" for document in DASHBOARDS.values()}
    for panel in panels(name):
        for link in panel.get("links", []):
            assert link["url"] in addresses, panel["title"]
