"""Every test starts from the same global state and leaves none behind."""

import random
import shutil
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch


@pytest.fixture(autouse=True)
def clean_globals():
    """float64, seeded, an empty parameter store, validation on; all of it put back afterwards."""
    dtype, settings = torch.get_default_dtype(), pyro.settings.get()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.set_default_dtype(torch.float64)
    pyro.enable_validation(True)
    pyro.set_rng_seed(0)
    with pyro.get_param_store().scope():
        yield
    torch.set_default_dtype(dtype)
    pyro.settings.set(**settings)
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; without one the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """Opens a file, 1280 x 900; at the end the console must be empty, and nothing asked for."""
    pages, said = [], []

    def show(path, size=(1280, 900)):
        page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url)
                if request.url[:5] not in ("file:", "data:") else None)  # fmt: skip
        page.goto(Path(path).absolute().as_uri())
        pages.append(page)
        return page

    yield show
    for page in pages:
        page.close()
    assert said == []
