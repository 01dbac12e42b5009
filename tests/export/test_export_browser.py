"""An exported model in a browser: the example of docs/examples/browser, in headless Chromium."""

from __future__ import annotations

import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

import fedsim
from fedsim.export.check import run_exported
from fedsim.speech.models import load_model
from fedsim.speech.public import public_request, public_set

PAGE = Path(__file__).parents[2] / "docs/examples/browser/index.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER, NPM = shutil.which("chromedriver"), shutil.which("npm")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
WAIT_S = 60
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER and NPM), reason="no chromium, driver or npm"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the example as its page asks for it."""
    home = tmp_path_factory.mktemp("browser")
    install = [NPM, "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"]
    done = subprocess.run(install, cwd=home, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the npm registry does not answer")
    shutil.copy(PAGE, home / "index.html")
    return home


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.parametrize("depths", [(4, 8), (2, 4, 6, 8)])
def test_a_recording_is_recognized_in_a_browser(site, address, browser, tmp_path, depths):
    """The page and onnxruntime on this machine hear the same; nothing is asked of another host."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    clips = [one.clip for one in public_set(public_request(n_clips=2)).clips]
    model = load_model("bundled:ctc")
    mine = fedsim.personalize(model, clips, budget_mb=1.6, bit_depths=depths)
    shutil.rmtree(site / "model", ignore_errors=True)
    exported = mine.export(site / "model")
    np.savez(tmp_path / "clips.npz", clip=clips[0])
    (expected,) = run_exported(exported.folder, tmp_path / "clips.npz", 4).transcripts
    soundfile.write(tmp_path / "clip.wav", clips[0], 16_000, subtype="FLOAT")
    browser.get(address)
    output = browser.find_element(By.ID, "text")
    WebDriverWait(browser, WAIT_S).until(lambda _: output.text == "choose a file")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "clip.wav"))
    WebDriverWait(browser, WAIT_S).until(lambda _: "s of audio in" in output.text)
    assert output.text.splitlines()[0] == expected
    assert expected
    log = [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
    assert not [entry for entry in log if entry["level"] == "SEVERE"]
