"""What the page shows while a text becomes rows and while an answer comes, and what it loads."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from extensible_embedding import ContextStore
from extensible_embedding.serve.service import Service

from ..conftest import Make, SimpleEngine, serving
from .conftest import ask, numbers, upload

pytestmark = pytest.mark.browser


# What the browser keeps the page from loading.
REFUSED = """window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => refused.push(event.blockedURI));"""


def strip_of(page: Page) -> str:
    """The strip in words."""
    return page.locator("#strip").get_attribute("aria-label") or ""


def share_of(rows: int, window: int) -> str:
    # As JavaScript rounds.
    return f"{math.floor(100 * rows / window + 0.5)} percent of the window's {window:,} rows"


def test_a_file_that_is_dropped_is_kept(page: Page, book: Path, store: ContextStore) -> None:
    dropped = page.evaluate_handle(
        "text => { const data = new DataTransfer();"
        "data.items.add(new File([text], 'walks.txt')); return data; }",
        book.read_text(),
    )
    page.dispatch_event("#drop", "dragover", {"dataTransfer": dropped})
    expect(page.locator("#drop")).to_have_class("drop over")
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    expect(page.locator("#documents input")).to_be_checked()
    expect(page.locator("#drop")).to_have_class("drop")
    assert store["walks"].text() == book.read_text()


@pytest.mark.parametrize("k", [2, 8])
def test_the_strip_counts_rows_at_the_k_of_the_server(
    browser: Browser, make: Make, book: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    service, goes_on = make(k=k), threading.Event()
    window, kept = service.reader.window, service.store.add

    def slow(*given: Any, progress: Callable[[int, int], None], **settings: Any) -> Any:
        progress(640, 1280)
        goes_on.wait(30)
        return kept(*given, progress=progress, **settings)

    monkeypatch.setattr(service.store, "add", slow)
    with serving(service) as url:
        page = browser.new_page()
        page.goto(url)
        page.set_input_files("#file", book)
        rows = 640 // k
        words = f"640 of 1,280 tokens are in {rows} rows, {k} tokens each."
        expect(page.locator("#fill")).to_have_text(words)
        assert strip_of(page).startswith(f"640 of 1,280 tokens of text stand in {rows} rows;")
        assert share_of(rows, window) in strip_of(page)
        goes_on.set()
        expect(page.locator("#documents li")).to_have_count(1)
        expect(page.locator("#fill")).not_to_contain_text(" of 1,280")
        page.close()


def test_the_strip_has_the_numbers_of_what_was_read(
    page: Page, book: Path, service: Service
) -> None:
    upload(page, book)
    page.uncheck("#compare")
    ask(page)
    rows = int(numbers(page, "extensible")["rows"])
    said = re.match(
        r"([\d,]+) tokens of text stand in (\d+) rows(?: and (\d+) tokens read raw)?;",
        strip_of(page),
    )
    assert said is not None
    assert int(said[1].replace(",", "")) == service.store["walks"].num_tokens
    assert int(said[2]) + int(said[3] or 0) < rows  # the question takes the rest
    assert share_of(rows, service.reader.window) in strip_of(page)


def test_numbers_are_there_before_the_answer_is(
    page: Page, book: Path, engine: SimpleEngine
) -> None:
    upload(page, book)
    before = strip_of(page)
    engine.pause_s = 1.0
    page.fill("#question", "Who went up the hill?")
    page.click("#ask")
    expect(page.locator("#extensible .numbers")).to_contain_text("rows", timeout=20_000)
    assert set(numbers(page, "extensible")) == {"tokens read", "rows", "k"}
    assert strip_of(page) != before
    expect(page.locator("#extensible .numbers")).to_contain_text("to first token")
    written = page.locator("#extensible .numbers div", has_text="tokens written").locator("dd")
    expect(written).not_to_have_text(written.inner_text())
    expect(page.locator("#ask")).to_be_disabled()
    page.click("#stop")
    expect(page.locator("#ask")).to_be_enabled(timeout=5_000)


def test_nothing_comes_from_elsewhere(browser: Browser, url: str, book: Path) -> None:
    page, asked = browser.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.add_init_script(REFUSED)
    answer = page.goto(url)
    assert answer is not None
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    upload(page, book)
    ask(page)
    page.locator("#extensible .sources button").first.click()
    expect(page.locator("#reading")).to_be_visible()
    paths = {each.removeprefix(url) for each in asked}
    assert paths >= {"/", "/page.js", "/style.css", "/icon.svg", "/v1/chat/completions"}
    assert [each for each in asked if not each.startswith(f"{url}/")] == []
    assert page.evaluate("refused") == []  # nor was it tried
    page.close()
