"""The viewer knows all that the dashboards ask for, and draws them in Chromium; a few lines stand for Prometheus."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import NARROW, SCHEMES, SIZES, WIDE, chromium, drawn, opened
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

ROLE = Path(__file__).parents[2] / "roles" / "grafana"
VIEWER = ROLE / "image" / "viewer"
DASHBOARDS = {
    path.stem: json.loads(path.read_text()) for path in sorted((ROLE / "files" / "dashboards").glob("*.json"))
}
DYGRAPH = Path("/usr/share/javascript/dygraphs/dygraph.min.js")
POLICY = re.search(r'Content-Security-Policy "([^"]+)"', (ROLE / "image" / "nginx.conf").read_text())
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

every_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def names(file: str, table: str) -> set[str]:
    """The keys of a table in one of the viewer's scripts."""
    (body,) = re.findall(rf"const {table} = {{(.*?)}};", (VIEWER / file).read_text(), flags=re.DOTALL)
    return set(re.findall(r'(?:^|[{,])\s*"?([\w-]+)"?(?=[:,}]|\s*$)', body, flags=re.MULTILINE))


COLOURS = set(re.findall(r"--(\w+):", (VIEWER / "viewer.css").read_text()))
ANY = None
# What the viewer draws by, and what else the JSON may say because it asks for nothing, with the values it may have.
FEATURES: dict[str, set[Any] | None] = {
    r"(panel\.)?(title|description|id|uid)": ANY,
    r"(annotations\.list\.\[\]|panel|panel\.targets\.\[\])\.datasource\.(type|uid)": {"prometheus", "mlops-prometheus"},
    r"annotations\.list\.\[\]\.(expr|name)": ANY,
    r"annotations\.list\.\[\]\.enable": {True},
    r"annotations\.list\.\[\]\.(hide|builtIn)": {False},
    r"annotations\.list\.\[\]\.iconColor": COLOURS,
    r"time\.from|refresh|tags\.\[\]|schemaVersion|links\.\[\]\.tags\.\[\]|links\.\[\]\.title": ANY,
    r"time\.to": {"now"},
    r"timezone": {"browser"},
    r"editable": {False},
    r"fiscalYearStartMonth": {0},
    r"graphTooltip": {1},
    r"links\.\[\]\.type": {"dashboards"},
    r"links\.\[\]\.keepTime": {True},
    r"panel\.type": {"row", *names("panels.js", "PANELS")},
    r"panel\.collapsed": {False},
    r"panel\.gridPos\.[xywh]": ANY,
    r"panel\.links\.\[\]\.(title|url)": ANY,
    r"panel\.links\.\[\]\.type": {"link"},
    r"panel\.links\.\[\]\.keepTime": {False},
    r"(panel\.)?links\.\[\]\.(asDropdown|includeVars|targetBlank)": {False},
    r"(panel\.)?links\.\[\]\.(icon|tooltip)": {""},
    r"panel\.transparent": {False},
    r"panel\.repeatDirection": {"h"},
    r"panel\.targets\.\[\]\.(expr|legendFormat|refId|instant|range)": ANY,
    r"panel\.fieldConfig\.defaults\.(noValue|decimals|min|max)": ANY,
    r"panel\.fieldConfig\.defaults\.unit": names("units.js", "UNITS"),
    r"panel\.fieldConfig\.defaults\.color\.mode": {"thresholds"},
    r"panel\.fieldConfig\.defaults\.thresholds\.mode": {"absolute"},
    r"panel\.fieldConfig\.defaults\.thresholds\.steps\.\[\]\.value": ANY,
    r"panel\.fieldConfig\.defaults\.(thresholds\.steps\.\[\]|mappings\.\[\]\.options\.\d+)\.color": COLOURS,
    r"panel\.fieldConfig\.defaults\.mappings\.\[\]\.options\.\d+\.(text|index)": ANY,
    r"panel\.fieldConfig\.defaults\.mappings\.\[\]\.type": {"value"},
    r"panel\.fieldConfig\.defaults\.custom\.(fillOpacity|lineWidth)": ANY,
    r"panel\.fieldConfig\.defaults\.custom\.showPoints": {"never"},
    r"panel\.fieldConfig\.defaults\.custom\.stacking\.group": {"A"},
    r"panel\.fieldConfig\.defaults\.custom\.stacking\.mode": {"normal"},
    r"panel\.fieldConfig\.defaults\.custom\.thresholdsStyle\.mode": {"dashed"},
    r"panel\.fieldConfig\.overrides": set(),
    r"panel\.options\.reduceOptions\.calcs\.\[\]": {"lastNotNull"},
    r"panel\.options\.legend\.calcs\.\[\]": names("panels.js", "CALCS"),
    r"panel\.options\.legend\.displayMode": {"table", "list"},
    r"panel\.options\.legend\.placement": {"bottom"},
    r"panel\.options\.legend\.showLegend": ANY,
    r"panel\.options\.tooltip\.mode": {"multi", "single"},
    r"panel\.options\.tooltip\.sort": {"desc", "asc"},
    # Numbers
    r"panel\.options\.textMode": {"auto", "name"},
    r"panel\.options\.graphMode": {"area", "none"},
    r"panel\.options\.colorMode": {"value"},
    r"panel\.options\.(justifyMode|namePlacement|sizing)": {"auto"},
    r"panel\.options\.orientation": {"auto", "horizontal"},
    r"panel\.options\.percentChangeColorMode": {"standard"},
    r"panel\.options\.showPercentChange": {False},
    r"panel\.options\.wideLayout": {True},
    # Bars
    r"panel\.options\.displayMode": {"basic"},
    r"panel\.options\.(maxVizHeight|minVizHeight|minVizWidth)": ANY,
    r"panel\.options\.showUnfilled": {True},
    r"panel\.options\.valueMode": {"color"},
    # States
    r"panel\.options\.alignValue": {"left"},
    r"panel\.options\.mergeValues": {True},
    r"panel\.options\.(perPage|rowHeight)": ANY,
    r"panel\.options\.showValue": {"never"},
}


def leaves(part: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document with its path; elements of a list share one."""
    if isinstance(part, dict):
        for key, value in part.items():
            yield from leaves(value, f"{path}.{key}".removeprefix("."))
    elif isinstance(part, list):
        for value in part:
            yield from leaves(value, f"{path}.[]")
    else:
        yield path, part


@every_dashboard
def test_the_viewer_knows_every_feature_of_the_dashboard(name: str) -> None:
    document = {key: value for key, value in DASHBOARDS[name].items() if key != "panels"}
    found = [*leaves(document), *(leaf for panel in DASHBOARDS[name]["panels"] for leaf in leaves(panel, "panel"))]
    unknown = {
        (path, value)
        for path, value in found
        if not any(
            re.fullmatch(known, path) and (allowed is ANY or value in allowed) for known, allowed in FEATURES.items()
        )
    }
    assert not unknown, "teach the viewer, in roles/grafana/image/viewer, and this test"


def test_the_viewer_knows_every_variable_of_the_queries() -> None:
    known = set(re.findall(r"\b(__\w+):", (VIEWER / "prometheus.js").read_text()))
    for document in DASHBOARDS.values():
        for panel in document["panels"]:
            for target in panel.get("targets", []):
                assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= known, panel["title"]


class Appliance(ThreadingHTTPServer):
    """The viewer's files under its own policy, and answers as Prometheus gives them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, str]] = []
        self.status = 200
        self.series = 2

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def result(self, parameters: dict[str, str]) -> list[dict[str, Any]]:
        """Series with all labels that a legend might name, and values from 0 to 1."""
        found = []
        for index in range(self.series):
            names = ("job", "status", "client", "version", "feature", "mountpoint", "device", "mode")
            labels = dict.fromkeys(names, f"s{index}")
            if "step" not in parameters:
                found.append({"metric": labels, "value": [float(parameters["time"]), str(index % 2)]})
                continue
            start, end, step = (float(parameters[key]) for key in ("start", "end", "step"))
            times = [start + step * number for number in range(int((end - start) / step) + 1)]
            values = [[time, str(round(0.5 + 0.5 * math.sin(time / 900 + index)))] for time in times]
            found.append({"metric": labels, "values": values})
        return found


class Handler(BaseHTTPRequestHandler):
    """Answers for an `Appliance`."""

    server: Appliance
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        status, kind, body = 200, "application/json", b""
        name = address.path.removeprefix("/viewer/")
        if address.path.startswith("/api/v1/"):
            parameters = {key: value for key, (value,) in parse_qs(address.query).items()}
            self.server.asked.append(parameters)
            status = self.server.status
            data = {"status": "success", "data": {"result": self.server.result(parameters)}}
            body = json.dumps(data).encode() if status == 200 else b"<html>Bad Gateway</html>"
        elif name == "settings.json":
            body = b'{"home": "ml-pipeline.json", "scrape_interval": "15s"}'
        elif name == "dashboards/":
            body = json.dumps([{"name": f"{stem}.json"} for stem in DASHBOARDS]).encode()
        elif name.startswith("dashboards/"):
            body = json.dumps(DASHBOARDS[Path(name).stem]).encode()
        else:
            file = DYGRAPH if name == "dygraph.js" else VIEWER / (name if name != address.path else "index.html")
            kind, body = TYPES[file.suffix], file.read_bytes()
        self.send_response(status)
        assert POLICY is not None
        for key, value in {
            "Content-Security-Policy": POLICY[1],
            "Content-Type": kind,
            "Content-Length": len(body),
        }.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name in the base class
        """Say nothing."""


@pytest.fixture(scope="module")
def running() -> Iterator[Appliance]:
    """One server for all tests of this module."""
    with Appliance() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def appliance(running: Appliance) -> Appliance:
    """The server as it is at first."""
    running.asked, running.status, running.series = [], 200, 2
    return running


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    with chromium() as browser:
        yield browser


@every_dashboard
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_every_panel_is_drawn(
    driver: webdriver.Chrome, appliance: Appliance, name: str, size: str, scheme: str
) -> None:
    document = DASHBOARDS[name]
    page = opened(driver, f"{appliance.url}/d/{document['uid']}", SIZES[size], scheme)
    assert [panel.title for panel in page.panels] == [
        panel["title"] for panel in document["panels"] if panel["type"] != "row"
    ]
    assert [panel for panel in page.panels if panel.state != "data" or not panel.marks] == []
    assert page.width <= SIZES[size][0], "nothing is wider than the page"
    assert page.elsewhere == []
    assert page.messages == [], "no error, and nothing that the policy refused"
    assert "$" not in str(appliance.asked), "every variable has a value"
    bright = sum(map(int, re.findall(r"\d+", page.background)[:3])) > 384
    assert bright == (scheme == "light")


def test_the_front_page_is_the_dashboard_that_grafana_would_show(
    driver: webdriver.Chrome, appliance: Appliance
) -> None:
    opened(driver, f"{appliance.url}/")
    assert driver.title == DASHBOARDS["ml-pipeline"]["title"]


def test_what_prometheus_has_not_is_said_in_the_words_of_the_dashboard(
    driver: webdriver.Chrome, appliance: Appliance
) -> None:
    appliance.series = 0
    page = opened(driver, f"{appliance.url}/d/mlops-stores")
    assert {panel.state for panel in page.panels} == {"empty"}
    assert "no PostgreSQL here" in {panel.text for panel in page.panels}


def test_without_prometheus_every_panel_says_what_to_do(driver: webdriver.Chrome, appliance: Appliance) -> None:
    appliance.status = 502
    page = opened(driver, f"{appliance.url}/d/mlops-system")
    assert {panel.state for panel in page.panels} == {"error"}
    assert {panel.text for panel in page.panels} == {
        "Prometheus does not answer. On the host: systemctl status mlops-prometheus"
    }


def test_a_span_of_time_is_part_of_the_address_and_goes_along(driver: webdriver.Chrome, appliance: Appliance) -> None:
    opened(driver, f"{appliance.url}/d/mlops-system?from=now-7d&to=now")
    ranges = [
        {key: float(asked[key]) for key in ("start", "end", "step")} for asked in appliance.asked if "step" in asked
    ]
    assert all(asked["end"] - asked["start"] > 6.9 * 86400 for asked in ranges)
    assert all((asked["end"] - asked["start"]) / asked["step"] < 2000 for asked in ranges)
    driver.find_element(By.CSS_SELECTOR, "nav a").click()
    drawn(driver)
    assert driver.current_url == f"{appliance.url}/d/mlops-ml-pipeline?from=now-7d&to=now"
    driver.find_element(By.LINK_TEXT, "Details").click()
    drawn(driver)
    assert driver.current_url.endswith("/d/mlops-application?from=now-7d&to=now")
    for text, query in (("5m", "?from=now-5m&to=now"), ("1h", "")):
        driver.find_element(By.XPATH, f"//button[text()='{text}']").click()
        drawn(driver)
        assert driver.current_url == f"{appliance.url}/d/mlops-application{query}"


def test_a_single_value_is_of_now_however_far_apart_the_points_are(
    driver: webdriver.Chrome, appliance: Appliance
) -> None:
    opened(driver, f"{appliance.url}/d/mlops-ml-pipeline?from=now-7d&to=now")
    asked_by: dict[str, set[str]] = {}
    for panel in DASHBOARDS["ml-pipeline"]["panels"]:
        asked_by.setdefault(panel["type"], set()).update(target["expr"] for target in panel.get("targets", []))
    single = asked_by["stat"] - asked_by["timeseries"] - asked_by["state-timeline"]
    ends = [float(asked["end"]) for asked in appliance.asked if "end" in asked and asked["query"] in single]
    assert ends
    assert min(ends) > time.time() - 60, "a step of an hour would hide what began since"


def test_what_the_mouse_selects_is_looked_at_closer(driver: webdriver.Chrome, appliance: Appliance) -> None:
    opened(driver, f"{appliance.url}/d/mlops-application")
    plot = driver.find_element(By.CSS_SELECTOR, ".plot")
    ActionChains(driver).move_to_element(plot).perform()
    assert "s0" in driver.find_element(By.ID, "tip").text, "the values under the mouse"
    ActionChains(driver).click_and_hold().move_by_offset(100, 0).release().perform()
    drawn(driver)
    begin, end = map(int, re.findall(r"(?:from|to)=(\d+)", driver.current_url))
    assert 0 < end - begin < 3_600_000


def test_a_name_in_the_legend_leaves_only_its_line_and_then_all(driver: webdriver.Chrome, appliance: Appliance) -> None:
    opened(driver, f"{appliance.url}/d/mlops-application")
    first, second = driver.find_elements(By.CSS_SELECTOR, ".legend tbody")[0].find_elements(By.CSS_SELECTOR, "tr")
    for off in ("off", ""):
        first.find_element(By.CSS_SELECTOR, "button").click()
        assert (first.get_attribute("class"), second.get_attribute("class")) == ("", off)


def test_light_or_dark_is_remembered(driver: webdriver.Chrome, appliance: Appliance) -> None:
    before = opened(driver, f"{appliance.url}/", WIDE, "light").background
    driver.find_element(By.ID, "theme").click()
    after = opened(driver, f"{appliance.url}/", NARROW, "light").background
    assert after != before


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "short", "0"),
        (1234, "short", "1.23k"),
        (0.06712, "percentunit", "6.71%"),
        (1, "percentunit", "100%"),
        (0, "s", "0 s"),
        (0.00042, "s", "420 µs"),
        (0.0421, "s", "42.1 ms"),
        (90, "s", "1.5 min"),
        (34500, "s", "9.58 h"),
        (1157760, "s", "13.4 days"),
        (100663296, "bytes", "96 MiB"),
        (1500, "Bps", "1.5 kB/s"),
        (0.25, "reqps", "0.25 req/s"),
        (1540, "rowsps", "1.54k rows/s"),
        (-12.345, "ops", "-12.3 ops/s"),
        (12, "pps", "12 p/s"),
        (0.125, "none", "0.125"),
        (None, "none", "\N{EN DASH}"),
    ],
)
def test_values_are_written_for_people(
    driver: webdriver.Chrome, appliance: Appliance, value: float | None, unit: str, text: str
) -> None:
    driver.get(f"{appliance.url}/viewer/icon.svg")
    script = "import('/viewer/units.js').then(({ format }) => arguments[2](format(arguments[0], arguments[1])))"
    assert driver.execute_async_script(script, value, unit) == text
