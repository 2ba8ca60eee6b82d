"""The page in a browser: nothing is fetched; by keyboard, on a phone, in the dark."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from large_run import HOSTILE, write_large
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mops_fl.report.page import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER or not DRIVER, reason="no chromium with chromedriver here"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    names = [f"{name[:60]}{'x' * (80 - len(name[:60]))}" for name in HOSTILE]
    runs = [
        write_large(
            folder / f"{method}{'-' * 60}", method=method, tasks=names, clients=60, rounds=8
        )
        for method in ("mops", "lora")
    ]
    write_report(runs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def browser(page, tmp_path) -> Iterator[webdriver.Chrome]:
    """At 360 pixels, in the dark, with the page loaded."""
    options = Options()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
        driver.get("about:blank")
        driver.get_log("performance")  # what the browser itself asked for
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def requested(browser) -> set[str]:
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = (e["params"] for e in events if e["method"] == "Network.requestWillBeSent")
    return {params["request"]["url"] for params in sent} - {"data:,"}


def luminance(browser, element: str) -> float:
    colour = browser.execute_script(
        f"return getComputedStyle(document.querySelector({element!r})).backgroundColor"
    )
    return sum(map(float, colour.removeprefix("rgb(").rstrip(")").split(","))) / 3 / 255


def test_the_page_in_a_browser(browser, page):
    assert browser.get_log("browser") == []
    assert requested(browser) == {page.as_uri()}
    assert luminance(browser, "body") < 0.15
    wide = "return document.documentElement.scrollWidth"
    assert browser.execute_script(wide) <= 360

    slider = browser.find_element(By.CSS_SELECTOR, "input[type=range]")
    cells = browser.find_elements(By.CSS_SELECTOR, ".weights tbody td")
    last = [cell.text for cell in cells]
    browser.execute_script("arguments[0].focus()", slider)
    slider.send_keys(Keys.HOME)
    first = [cell.text for cell in cells]
    assert set(first) == {"0.25"}
    assert first != last
    assert browser.find_element(By.TAG_NAME, "output").text == "before training"
    assert slider.get_attribute("aria-valuetext") == "before training"
    slider.send_keys(Keys.END)
    assert [cell.text for cell in cells] == last

    for details in browser.find_elements(By.TAG_NAME, "details"):
        summary = details.find_element(By.TAG_NAME, "summary")
        browser.execute_script("arguments[0].focus()", summary)
        summary.send_keys(Keys.ENTER)
        assert details.get_attribute("open")
    assert browser.execute_script(wide) <= 360
    assert browser.get_log("browser") == []


def test_without_scripts_the_last_round_is_shown(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(page.as_uri())
    assert not browser.find_element(By.CSS_SELECTOR, "input[type=range]").is_displayed()
    assert browser.find_element(By.TAG_NAME, "output").text == "after round 8"
    assert browser.find_element(By.CSS_SELECTOR, ".weights tbody td").text == "0.92"
