"""A real Chromium before a real server over the tiny reader."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from extensible_embedding.serve.service import Service

from ..conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
# Nothing of it talks to the network; a container's root has no sandbox.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium, for example from the Debian package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(service) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, which must not report an error to the console."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page, faults = context.new_page(), list[str]()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(url)
    page.wait_for_selector("#server:not(:empty)")
    yield page
    context.close()
    assert faults == []


def upload(page: Page, book: Path) -> None:
    """Adds a file, and waits until it is there."""
    page.set_input_files("#file", book)
    expect(page.locator("#documents li")).to_have_count(1)
    expect(page.locator("#work")).to_be_hidden()


def ask(page: Page, question: str = "Who went up the hill?") -> None:
    """Asks, and waits for all of the answer."""
    page.fill("#question", question)
    page.click("#ask")
    expect(page.locator("#ask")).to_be_enabled(timeout=30_000)


def numbers(page: Page, article: str) -> dict[str, str]:
    """The numbers of an answer by their names."""
    terms = page.locator(f"#{article} .numbers dt").all_inner_texts()
    return dict(zip(terms, page.locator(f"#{article} .numbers dd").all_inner_texts(), strict=True))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "walks.txt"
    path.write_text("".join(f"Walk {number} went up the hill. " for number in range(60)))
    return path
