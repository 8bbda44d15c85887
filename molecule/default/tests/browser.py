"""Headless Chromium, and what it shows of a dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from selenium import webdriver
from selenium.common.exceptions import WebDriverException

WIDE, NARROW = (1280, 900), (400, 800)
SIZES = {"wide": WIDE, "narrow": NARROW}
SCHEMES = ("light", "dark")
PATIENCE_SECONDS = 60
# Chromium drops all that is under way when a container anywhere on the machine comes or goes.
NETWORK_CHANGED = "ERR_NETWORK_CHANGED"

LOOK = """
const here = performance.getEntriesByType("resource").map((entry) => new URL(entry.name).origin);
return {
  panels: [...document.querySelectorAll("[data-panel]")].map((panel) => ({
    title: panel.querySelector("h3").textContent,
    state: panel.dataset.state,
    // Asked for by each type of panel in its own way: figures, bars, states, or lines on a canvas.
    marks: panel.querySelectorAll(".tile b, .bars li, .track i, canvas").length,
    text: panel.querySelector(".body").innerText,
  })),
  elsewhere: here.filter((origin) => origin !== location.origin),
  width: document.documentElement.scrollWidth,
  background: getComputedStyle(document.body).backgroundColor,
  first: performance.getEntriesByName("first-picture")[0]?.startTime ?? null,
};
"""


@dataclass(frozen=True)
class Panel:
    """A panel as it stands on the page: `state` is loading, data, empty or error."""

    title: str
    state: str
    marks: int
    text: str


@dataclass(frozen=True)
class Page:
    """A dashboard after its last panel is drawn.

    `elsewhere` are origins other than the page's own that it asked, `messages` the errors of the browser's console.
    """

    panels: list[Panel]
    elsewhere: list[str]
    messages: list[str]
    width: int
    background: str
    first_picture_ms: float | None


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser of its own for each use."""
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    # Tests run as root, and in containers with little shared memory.
    arguments = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking")
    for argument in (*arguments, "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService("/usr/bin/chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


def opened(driver: webdriver.Chrome, url: str, size: tuple[int, int] = WIDE, scheme: str = "light") -> Page:
    """Open a dashboard, and wait until no panel waits for its data."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == NARROW}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            driver.get(url)
            page = drawn(driver)
            if not any(NETWORK_CHANGED in message for message in page.messages):
                return page
        except WebDriverException as error:
            if NETWORK_CHANGED not in str(error):
                raise
        assert time.monotonic() < deadline, "the machine's network does not come to rest"


def drawn(driver: webdriver.Chrome) -> Page:
    """What the page shows once no panel waits for its data."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = driver.execute_script(LOOK)
        panels = [Panel(**panel) for panel in found["panels"]]
        if panels and all(panel.state != "loading" for panel in panels):
            break
        assert time.monotonic() < deadline, f"not drawn: {panels}"
        time.sleep(0.1)
    messages = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return Page(panels, found["elsewhere"], messages, found["width"], found["background"], found["first"])
