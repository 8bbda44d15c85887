"""What a browser is shown, as a person uses it: in headless Chromium, typed and clicked."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from serving_harness import Server, Servers, store_model
from serving_models import PERSON

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
EXAMPLE = {"input_example": (["a query"], {"top_k": 2})}
TABLE: dict[str, Any] = {
    "signature": ModelSignature(
        Schema(
            [
                ColSpec("double", "area"),
                ColSpec("string", "city"),
                ColSpec("boolean", "garden"),
                ColSpec("double", "distance", required=False),
            ]
        ),
        params=ParamSchema([ParamSpec("rate", DataType.double, 1000.0)]),
    )
}


def serve(servers: Servers, model: str, **options: Any) -> Server:
    models = servers.directory / "models"
    models.mkdir(exist_ok=True)
    store_model(models, model, "7", **options)
    return servers.start(SERVING_WORKERS="1")


@pytest.fixture(scope="module")
def server(shared_servers: Servers) -> Server:
    """The search model."""
    return serve(shared_servers, "search", **EXAMPLE)


# --- over HTTP -------------------------------------------------------------------------------------------------------


def test_only_who_asks_for_html_gets_the_page(server: Server) -> None:
    page = server.request("/", headers=HTML)
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["Vary"] == "Accept"
    head = server.request("/", headers=HTML, method="HEAD")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(page.body)))
    for answer in (
        server.request("/"),
        server.request("/", headers={"Accept": "*/*"}),
        server.request("/", headers={"Accept": "application/json"}),
        server.request("/", b"{}", HTML),
        server.request("/", headers=HTML, method="OPTIONS"),
        server.request("/", headers=HTML, method="DELETE"),
    ):
        assert (answer.status, answer.json["error_code"]) == (404, "ENDPOINT_NOT_FOUND")


def test_the_pages_and_their_files_may_do_no_more_than_they_must(server: Server) -> None:
    for path in ("/", "/docs", "/static/ask.js"):
        headers = server.request(path, headers=HTML).headers
        policy = dict(part.split(maxsplit=1) for part in headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_browsers_keep_the_files_and_ask_whether_the_pages_changed(server: Server) -> None:
    for path in ("/", "/docs"):
        page = server.request(path, headers=HTML)
        assert page.headers["Cache-Control"] == "no-cache"
        assert server.request(path, headers={**HTML, "If-None-Match": page.headers["ETag"]}).status == 304
        links = re.findall(rb'(?:src|href)="(static/[^"]+)"', page.body)
        assert len(links) >= 4
        for link in links:
            file = server.request(f"/{link.decode()}")
            assert file.status == 200
            assert "immutable" in file.headers["Cache-Control"]
            other = server.request(f"/{link.decode()}0")
            assert other.headers["Cache-Control"] == "no-cache", "not the file that was asked for"


def test_a_query_of_any_bytes_is_no_matter(server: Server) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(b"GET /static/ask.js?\xff HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert connection.recv(100).startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
    connection.close()


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/ask.html", "/static/nowhere.js", "/static/../pages.py", "/static/..%2fpages.py"],
)
def test_there_are_no_other_files(server: Server, path: str) -> None:
    assert server.request(path, headers=HTML).json["error_code"] == "ENDPOINT_NOT_FOUND"


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser that notes what is said in its console and what it asks for."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


class Browser:
    """A person with a browser."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.origins: set[str] = set()

    def open(self, server: Server, path: str = "/") -> None:
        self.origins.add(f"127.0.0.1:{server.port}")
        self.driver.get(f"http://127.0.0.1:{server.port}{path}")
        self.shown("#form" if path == "/" else "#swagger-ui .opblock")

    def shown(self, selector: str) -> WebElement:
        """The element, once it can be seen."""

        def look(driver: webdriver.Chrome) -> WebElement | None:
            return next((one for one in driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()), None)

        return WebDriverWait(self.driver, 120).until(look)

    def text(self, selector: str) -> str:
        return self.shown(selector).text

    def field(self, label: str, number: int = 0) -> WebElement:
        """A field by its label, one of several that share it."""
        labels = self.driver.find_elements(By.XPATH, f"//label[span[normalize-space()='{label}']]")
        return self.driver.find_element(By.ID, labels[number].get_dom_attribute("for"))

    def type(self, field: WebElement, text: str) -> None:
        field.clear()
        field.send_keys(text)

    def click(self, selector: str) -> None:
        self.shown(selector).click()

    def answered(self) -> str:
        """Click, and return the status that is shown."""
        self.driver.execute_script("document.getElementById('answer').hidden = true")
        self.click("#ask")
        return self.text("#status")

    def cells(self) -> list[list[str]]:
        rows = self.driver.find_elements(By.CSS_SELECTOR, "#shown tbody tr")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td")] for row in rows]


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[Browser]:
    """A browser in which nothing may go wrong unseen, and which may ask nobody but the server."""
    person = Browser(chromium)
    chromium.get_log("browser")
    chromium.get_log("performance")
    yield person
    said = [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    # What the server refuses is the test's to judge.
    answers = re.compile(r"\S+/(model|invocations) - Failed to load resource")
    assert [entry["message"] for entry in said if not answers.match(entry["message"])] == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {urlsplit(url).netloc for url in asked if not url.startswith("data:")} == person.origins


def test_a_question_is_typed_and_answered(server: Server, browser: Browser) -> None:
    browser.open(server)
    assert browser.text("h1") == "m"
    assert browser.text("#version") == "version 7"
    assert browser.text("#state") == "Serving"
    assert "run7" in browser.text("#about")
    assert browser.field("Input").get_property("value") == "a query"
    browser.type(browser.field("Input"), "open a file")
    browser.type(browser.field("top_k"), "3")
    assert browser.answered() == "200 OK"
    assert browser.cells() == [["open a file_0", "1"], ["open a file_1", "0.5"], ["open a file_2", "0.333333"]]
    assert re.fullmatch(r"[\d.]+ ms, version 7", browser.text("#time"))
    assert re.fullmatch(r"[0-9a-f]{16}", browser.text("#request"))


def test_several_questions_by_keyboard_alone(server: Server, browser: Browser) -> None:
    browser.open(server)
    browser.click("#panel-form > .plain")
    browser.driver.switch_to.active_element.send_keys("another", Keys.CONTROL, Keys.ENTER)
    captions = [browser.text(f"#shown .scroll:nth-child({number}) caption") for number in (1, 2)]
    assert captions == ["a query", "another"]
    browser.shown("#tab-form").send_keys(Keys.ARROW_RIGHT)
    assert json.loads(browser.shown("#body").get_property("value")) == {
        "inputs": ["a query", "another"],
        "params": {"top_k": 2},
    }


def test_what_fails_is_shown_in_the_servers_own_words(server: Server, browser: Browser) -> None:
    browser.open(server)
    browser.type(browser.field("Input"), "raise")
    assert browser.answered() == "500 INTERNAL_ERROR"
    assert browser.text("#request") in browser.shown("#raw").get_property("textContent")
    browser.type(browser.field("top_k"), "0")
    browser.type(browser.field("Input"), "q")
    assert browser.answered() == "200 OK"
    assert browser.text("#shown") == "q: nothing found."
    browser.click("#tab-json")
    browser.type(browser.shown("#body"), "{")
    assert browser.answered() == "400 BAD_REQUEST"
    assert "valid JSON" in browser.text("#shown")
    browser.click("#tab-form")
    assert "no form for this body" in browser.text("#note")
    browser.click("#reset")
    assert browser.field("Input").get_property("value") == "a query"


def test_the_command_asks_the_same(server: Server, browser: Browser) -> None:
    browser.open(server)
    browser.type(browser.field("Input"), "what's $HOME")
    browser.click("#tab-curl")
    command = browser.shown("#command").get_property("value")
    answer = subprocess.run(["bash", "-c", command], capture_output=True, check=True)
    assert json.loads(answer.stdout)["predictions"][0][0]["function"] == "what's $HOME_0"
    browser.click("#copy")
    assert browser.text("#copy") == "Copied"


def test_a_table_is_filled_in(servers: Servers, browser: Browser) -> None:
    import pandas as pd

    table = pd.DataFrame({"area": [80.5, 100.0], "city": ["Jena", "Ulm"], "garden": [True, False]})
    browser.open(serve(servers, "prices", input_example=table, **TABLE))
    assert "double, optional" in browser.text("#panel-form")
    assert browser.answered() == "200 OK"
    assert browser.cells() == [["1", "81000"], ["2", "100000"]]
    browser.type(browser.field("area", 1), "99.5")
    Select(browser.field("garden", 1)).select_by_visible_text("true")
    browser.click("#panel-form > .plain")
    browser.type(browser.field("distance", 2), "0.25")
    browser.type(browser.field("rate"), "10")
    assert browser.answered() == "200 OK"
    assert browser.cells() == [["1", "1305"], ["2", "1495"], ["3", "1494.75"]]
    browser.click("[aria-label='Remove Row 1']")
    browser.field("area", 0).clear()
    browser.click("#ask")
    assert browser.field("area", 0).get_property("validity")["valueMissing"]


def test_nested_input_is_edited_as_json(servers: Servers, browser: Browser) -> None:
    signature = ModelSignature(Schema([ColSpec(PERSON, "who")]))
    example = [{"who": {"name": "Ada", "age": 36}}]
    browser.open(serve(servers, "echo", signature=signature, input_example=example))
    assert not browser.driver.find_element(By.ID, "tab-form").is_displayed()
    body = browser.shown("#body")
    assert "Ada" in body.get_property("value")
    browser.type(body, '{"dataframe_records": [{"who": {"name": "Grace"}}]}')
    assert browser.answered() == "200 OK"
    assert "Grace" in browser.text("#text")


def test_without_a_model_the_page_says_why_and_looks_again(servers: Servers, browser: Browser) -> None:
    server = servers.start(ready=False, SERVING_WORKERS="1")
    browser.origins.add(f"127.0.0.1:{server.port}")
    browser.driver.get(f"http://127.0.0.1:{server.port}/")
    browser.shown("#absence")
    assert browser.text("#reason") == server.request("/ready").json["message"]
    assert browser.text("#state") == "Not serving"
    server.stop()
    store_model(servers.directory / "models", "search", **EXAMPLE)
    servers.start(SERVING_WORKERS="1", SERVING_PORT=str(server.port))
    browser.shown("#form")
    assert browser.text("#version") == "version 1"


def test_the_api_is_tried_out_in_its_description(server: Server, browser: Browser) -> None:
    browser.open(server, "/docs")
    assert browser.text("#swagger-ui .info .title").startswith("Model server: m")
    browser.click("#operations-model-post_invocations .opblock-summary-control")
    browser.click(".try-out__btn")
    browser.click(".execute")
    assert browser.text(".live-responses-table tbody .response-col_status").startswith("200")
    assert "a query_0" in browser.text(".live-responses-table tbody .response-col_description")


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_telephone_is_wide_enough(server: Server, browser: Browser, path: str) -> None:
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        browser.open(server, path)
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") == 400
    finally:
        browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
