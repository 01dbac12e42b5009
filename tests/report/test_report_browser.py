"""The report in a real browser: no errors, no network, all figures, tables that sort."""

import json
import shutil

import pytest
from report_toys import clips_study, model, scenario, words_study, write_matrix, write_run
from round_toys import timed, timeline

from fedsim.report.page import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
DRAWN = "return [...document.querySelectorAll('.chart')].map(c => !!c.querySelector('svg'))"

LABEL = (
    "return getComputedStyle(document.querySelector('.chart .role-axis-label text'))"
    ".getPropertyValue('fill')"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports with every figure that a report draws, by name."""
    home = tmp_path_factory.mktemp("reports")
    cells = [(30.0, words_study(30.0, 29.5, worse=2)), (40.0, words_study())]
    sweep = write_matrix(home / "sweep", "clients.budget_mb", cells)
    studies = [(2, words_study(worse=2)), (8, words_study())]
    clips = write_matrix(home / "clips", "corpus.tuning_clips", studies)
    many = [model(f"client {i}", "uniform/none", "", [i % 2, 1, 0]) for i in range(12)]
    chosen = scenario("a_very_long_name_" * 5, description="<b>words</b> " * 30)
    wide = write_run(home / "wide", [*clips_study(), *many], settings=chosen)
    quantiles = tuple(float(i) for i in range(4 * 33))
    layers = write_run(home / "layers", words_study(), quantiles=quantiles)
    made = {"sweep": [sweep], "clips": [clips], "wide": [wide], "several": [sweep, wide]}
    made["layers"] = [layers]
    fleet = [
        model(f"client {i}", "uniform/cosine", f"client {i}", [i], [9], 30.0 + i % 3, study=False)
        for i in range(6)
    ]
    made["fleet"] = [write_run(home / "fleet", fleet, ended=False)]
    lines = [timeline("ann", "phone", 9.0), timeline("bob", "watch", 9e4, unavailable_s=8e4)]
    failures = [("eve", "sense", "no answer.", "dropped")]
    clock = write_run(home / "clock", words_study(), failures=failures, timed=timed(lines))
    made["clock"] = [clock]
    return {
        name: write_report(paths, home / f"{name}.html").path.as_uri()
        for name, paths in made.items()
    }


def open_page(browser, address, width=1280, scheme="light"):
    """Open a page at a width and wait for its figures."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get_log("browser"), browser.get_log("performance")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(address)
    WebDriverWait(browser, 60).until(lambda b: all(b.execute_script(DRAWN)))


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["sweep", "clips", "wide", "several", "layers", "fleet", "clock"])
def test_a_report_is_drawn_whole_and_fits(browser, reports, name, width):
    open_page(browser, reports[name], width)
    drawn = browser.execute_script(DRAWN)
    expected = {
        "sweep": 5,
        "clips": 5,
        "wide": 5,
        "several": 9,
        "layers": 5,
        "fleet": 4,
        "clock": 7,
    }
    assert len(drawn) == expected[name]
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    nothing = "return [...document.querySelectorAll('.chart svg')].filter(s => s.clientWidth < 200)"
    assert browser.execute_script(nothing) == []
    assert "NaN" not in browser.execute_script("return document.querySelector('main').innerHTML")


def test_a_report_asks_the_network_for_nothing(browser, reports):
    open_page(browser, reports["sweep"])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"].endswith("requestWillBeSent")
    ]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_figures_follow_the_colours_of_the_page(browser, reports):
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(23, 24, 27)")):
        open_page(browser, reports["sweep"], scheme=scheme)
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert back == paper
        assert (
            browser.execute_script(LABEL)
            == {
                "light": "rgb(92, 95, 102)",
                "dark": "rgb(163, 167, 176)",
            }[scheme]
        )


def test_paper_is_light_whatever_the_screen_is(browser, reports):
    open_page(browser, reports["sweep"], scheme="dark")
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
    ink = browser.execute_script("return getComputedStyle(document.body).color")
    assert ink == "rgb(29, 29, 31)"
    assert browser.execute_script(LABEL) == "rgb(92, 95, 102)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})


def test_everything_works_by_keyboard(browser, reports):
    """By the tab key alone every heading of an open table and every fold is reached, in the order
    of the page; Enter sorts a table and opens a fold."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    open_page(browser, reports["sweep"])
    stops = "return [...document.querySelectorAll('th button, summary')].filter(%s).length"
    wanted = browser.execute_script(stops % "e => e.checkVisibility()")
    reached = []
    for _ in range(400):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        tag, top, style = browser.execute_script(
            "const e = document.activeElement; return [e.tagName,"
            " e.getBoundingClientRect().top + scrollY, getComputedStyle(e).outlineStyle]"
        )
        if tag == "BODY":
            break
        assert style != "none"
        if tag in ("BUTTON", "SUMMARY"):
            reached.append(top)
    assert len(reached) == wanted > 10
    assert reached == sorted(reached)
    head = browser.find_element("css selector", "#results th button")
    head.send_keys(Keys.ENTER)
    assert browser.execute_script("return arguments[0].parentElement.ariaSort", head) == "ascending"
    fold = browser.find_element("css selector", "#clients summary")
    fold.send_keys(Keys.ENTER)
    assert browser.execute_script("return arguments[0].parentElement.open", fold)


def test_a_click_on_a_head_sorts(browser, reports):
    open_page(browser, reports["sweep"])
    table = browser.find_element("css selector", "#results table")
    heads = table.find_elements("css selector", "th")

    def column(i):
        return [row.find_elements("css selector", "td")[i].text for row in rows()]

    def rows():
        return table.find_elements("css selector", "tbody tr")

    at = [head.text for head in heads].index("WER %")
    before = [float(x) for x in column(at)]
    assert before != sorted(before)
    heads[at].find_element("css selector", "button").click()
    assert [float(x) for x in column(at)] == sorted(before)
    assert heads[at].get_attribute("aria-sort") == "ascending"
    heads[at].find_element("css selector", "button").click()
    assert [float(x) for x in column(at)] == sorted(before, reverse=True)
    assert heads[at].get_attribute("aria-sort") == "descending"
    heads[1].find_element("css selector", "button").click()
    assert column(1) == sorted(column(1))
    assert heads[at].get_attribute("aria-sort") == "none"
