"""Chromium for the tests of `rlt view`; each page must leave the console silent and the network alone."""

import os
import shutil

import pytest

AXE = os.path.join(os.path.dirname(__file__), "..", "..", ".browser", "node_modules", "axe-core", "axe.min.js")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# As root in a container there is no sandbox; the others keep a fresh browser from asking its maker for anything.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


# Playwright keeps an event loop running in this thread, in which no other file's test could call `asyncio.run`.
@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; `make browser-tests` installs it")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def show(browser):
    """A function that opens a page's file; at the end nothing may be in the console, and nothing have been asked for."""
    contexts, messages, requests = [], [], []

    def opened(path, fragment="", width=1400, dark=False, offline=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=offline
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        address = str(path) if str(path).startswith("http") else path.as_uri()
        own = ("data:", address)
        page.on("request", lambda request: request.url.startswith(own) or requests.append(request.url))
        page.goto(address + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert messages == []
    assert requests == []


@pytest.fixture(scope="session")
def axe():
    """The source of axe-core."""
    if not os.path.isfile(AXE):
        pytest.skip("no axe-core here; `make browser-tests` installs it")
    with open(AXE, encoding="utf-8") as file:
        return file.read()
