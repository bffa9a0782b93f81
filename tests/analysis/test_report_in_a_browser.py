"""The report in a real browser: it fits, fetches nothing and logs no error, in light, in dark and on paper."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from analysis.advice.assumptions import USUAL
from analysis.logs.load import load_results
from analysis.report import report
from support.fault_logs import fault_log
from support.loops import Costs, LoopSimulation
from support.studies import study_maker

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

CONTRAST = """
const rgb = text => text.match(/[0-9.]+/g).slice(0, 3).map(Number);
const luminance = text => {
    const [r, g, b] = rgb(text).map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const paper = element => {
    for (let each = element; each; each = each.parentElement) {
        const colour = getComputedStyle(each).backgroundColor;
        if (!colour.endsWith(", 0)")) return colour;
    }
    return "rgb(255, 255, 255)";
};
let least = 99;
for (const element of document.querySelectorAll("h1, h2, h3, p, li, th, td, a, dd, dt, figcaption, caption, text")) {
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [low, high] = [luminance(ink), luminance(paper(element))].sort((a, b) => a - b);
    least = Math.min(least, (high + 0.05) / (low + 0.05));
}
return least;
"""
"""The least contrast, by WCAG's definition, of any text on the page with what lies behind it."""

OVERFLOW = """
const wide = document.documentElement.clientWidth;
return [...document.querySelectorAll("body *")]
    .filter(each => !each.closest(".scroll table, svg, .skip") && each.getBoundingClientRect().right > wide + 0.5)
    .map(each => each.tagName + " " + each.className + " " + each.getBoundingClientRect().right);
"""
"""What ends beyond the window, but for tables, which scroll in a frame of their own."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A Chromium that logs what it fetches and what goes wrong."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        why = "Chromium or its driver is missing, so that no report can be opened: install chromium and chromium-driver"
        if os.environ.get("CKPT_REQUIRE_ALL"):
            pytest.fail(why)
        pytest.skip(why)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for each in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(each)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    try:
        started.get("about:blank")  # and not its own first page, which fetches what it shows
        yield started
    finally:
        started.quit()


KINDS = ["plain", "hostile", "many", "loop", "faults"]
"""Kinds of reports; many methods have long labels."""


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Write a report of one of these kinds."""

    def make(which: str) -> Path:
        if which in {"plain", "hostile"}:
            made = request.getfixturevalue("three_methods_page")(which)
        else:
            made = request.getfixturevalue(f"page_of_{which}")
        report.write(made, tmp_path / f"{which}.html")
        return tmp_path / f"{which}.html"

    return make


def fetched(browser: webdriver.Chrome) -> list[str]:
    """The addresses of everything that was asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("which", KINDS)
def test_in_a_browser(which: str, browser: webdriver.Chrome, page: Callable[[str], Path]) -> None:
    """At the width of a phone and of a desktop, in light, in dark and as it is printed: nothing ends beyond the
    window, every text can be read, nothing is fetched but the page itself, and no error or warning is logged.
    """
    address = page(which).as_uri()
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(address)
    for width in (360, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for medium, scheme in (("screen", "light"), ("screen", "dark"), ("print", "light"), ("print", "dark")):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})
            where = f"{width} px, {medium}, {scheme}"
            dark = (
                browser.execute_script("return getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
            )
            assert dark == (medium == "screen" and scheme == "dark"), where
            assert browser.execute_script(CONTRAST) >= 4.5, where
            if medium == "screen":
                assert browser.execute_script(OVERFLOW) == [], where
                scrolls = browser.execute_script("return document.documentElement.scrollWidth")
                assert scrolls <= width, where
    assert [url for url in fetched(browser) if url not in {address, "data:,"}] == []
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('script, img, iframe, object').length") == 0


def test_it_prints(browser: webdriver.Chrome, page: Callable[[str], Path]) -> None:
    """Chromium makes a PDF of it, in which no table is cut off: printed, it is no wider than its paper."""
    browser.get(page("many").as_uri())
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1032, "height": 730, "deviceScaleFactor": 1,
                                                                  "mobile": False})  # fmt: skip
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    right = "return Math.max(...[...document.querySelectorAll('table')].map(t => t.getBoundingClientRect().right))"

    assert browser.execute_script(right) <= 1032  # A4 across, less its margins, at 96 dots an inch
    assert browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"].startswith("JVBERi")


@pytest.fixture
def page_of_faults() -> str:
    """The report about a study of faults alone."""
    return report.report(None, USUAL, faults=[fault_log()])


@pytest.fixture
def page_of_loop(tmp_path: Path) -> str:
    """The report about a training loop with a long name on two ranks, and three ways to save in it."""
    for way, costs in (
        ("sync", Costs(call_s=3.0, latency_s=3.0)),
        ("library-process", Costs(snapshot_s=0.5, latency_s=5.0, slow_rank=1)),
        ("none", Costs()),
    ):
        simulation = LoopSimulation(
            "torch_dcp+single_file_per_rank=False+threads=16", way, costs, nodes=2, spec={"blocks": 3, "saves": 2}
        )
        simulation.write(tmp_path / "a-loop-with-a-long-name")
    return report.report(load_results(tmp_path / "a-loop-with-a-long-name"), USUAL)


@pytest.fixture(scope="module")
def page_of_many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report about fifteen methods with long labels, in three rounds, on a target and a study with long names."""
    make_study = study_maker(tmp_path_factory.mktemp("many"))
    study = make_study("a-study-with-a-long-name", strategies=["torch_save"], rounds=3)
    for number in range(15):
        for n in (1, 2, 3):
            save = [1.3**number * (1 + 0.01 * n * trial) for trial in range(4)]
            path = study.log("torch_save", number=n, save=save, cold=save, warm=save, gib=[1 + number / 10] * 4,
                             label=f"tensorstore_variant_{number:02}+chunk_bytes=67108864+driver=zarr3+codec=zstd",
                             job_id=f"r{n:02}-{number:02}")  # fmt: skip
            path.rename(path.with_name(f"r{n:02}-{number:02}.h5"))
    study.paths.plan_json.unlink()
    return report.report(load_results(study.root), USUAL)
