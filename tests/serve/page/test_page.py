"""The page in a real browser: documents, window, questions, sources, errors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from extensible_embedding import ContextStore
from extensible_embedding.serve.keys import Client, Key, Keys

from ..conftest import Make, SimpleEngine, serving
from .conftest import ask, numbers, upload

pytestmark = pytest.mark.browser


def test_an_uploaded_file_is_chosen_and_stands_in_the_window(
    page: Page, book: Path, store: ContextStore
) -> None:
    upload(page, book)
    assert store["walks"].text() == book.read_text()
    expect(page.locator("#documents input")).to_be_checked()
    tokens = f"{store['walks'].num_tokens:,} tokens"
    expect(page.locator("#fill")).to_contain_text(tokens)
    label = page.locator("#strip").get_attribute("aria-label")
    assert label is not None
    assert label.startswith(tokens)


def test_pasted_text_is_kept(page: Page, store: ContextStore) -> None:
    page.click("#paste summary")
    page.fill("#paste-name", "A note")
    page.fill("#paste-text", "The key is under the mat. " * 8)
    page.click("#paste-form button")
    expect(page.locator("#documents")).to_contain_text("A note")
    assert store["A note"].text() == "The key is under the mat. " * 8


def test_the_slider_changes_k_and_how_full_the_window_is(page: Page, book: Path) -> None:
    upload(page, book)
    page.focus("#k")
    for shown in ("1", "4", "8"):
        page.keyboard.press("ArrowRight")
        expect(page.locator("#k-shown")).to_have_text(shown)
    eight = page.locator("#fill").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#k-shown")).to_have_text("16")
    assert page.locator("#fill").inner_text() != eight
    page.keyboard.press("Home")
    expect(page.locator("#k-shown")).to_contain_text("auto")


def test_an_answer_streams_and_names_what_was_read(
    page: Page, book: Path, engine: SimpleEngine
) -> None:
    upload(page, book)
    ask(page)
    ours, theirs = numbers(page, "extensible"), numbers(page, "truncated")
    assert set(ours) >= {"tokens read", "rows", "k", "to first token"}
    assert int(ours["tokens read"].replace(",", "")) > int(theirs["tokens read"].replace(",", ""))
    assert theirs["k"] == "1"
    assert int(ours["k"]) > 1
    assert len(engine.requests) >= 2
    expect(page.locator("#extensible .answer")).not_to_be_empty()


def test_sources_are_shown_in_the_text(page: Page, book: Path) -> None:
    upload(page, book)
    ask(page)
    first = page.locator("#extensible .sources button").first
    expect(first).to_be_visible()
    first.click()
    expect(page.locator("#reading")).to_be_visible()
    marked = page.locator("#text mark").inner_text()
    assert marked
    assert marked in book.read_text()
    assert "Walk" in page.locator("#text").inner_text()


def test_without_comparison_there_is_one_answer(
    page: Page, book: Path, engine: SimpleEngine
) -> None:
    upload(page, book)
    page.uncheck("#compare")
    ask(page)
    assert len(engine.requests) == 1
    expect(page.locator("#truncated")).to_be_hidden()


def test_a_question_needs_a_document(page: Page) -> None:
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("choose one")


def test_a_file_that_cannot_be_read_is_told(page: Page, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"no pdf")
    page.set_input_files("#file", broken)
    expect(page.get_by_role("alert")).to_contain_text("broken.pdf")
    expect(page.locator("#work")).to_be_hidden()
    expect(page.locator("#documents li")).to_have_count(0)


def test_an_engine_that_fails_is_told_and_the_next_question_works(
    page: Page, book: Path, engine: SimpleEngine
) -> None:
    upload(page, book)
    engine.fails = RuntimeError("gone")
    ask(page)
    expect(page.get_by_role("alert")).to_be_visible()
    engine.fails = None
    ask(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#extensible .answer")).not_to_be_empty()


def test_stop_ends_the_generation(page: Page, book: Path, engine: SimpleEngine) -> None:
    upload(page, book)
    engine.pause_s = 0.5
    page.fill("#question", "Who?")
    page.click("#ask")
    expect(page.locator("#extensible .answer")).not_to_be_empty(timeout=20_000)
    page.click("#stop")
    expect(page.locator("#ask")).to_be_enabled(timeout=5_000)
    page.wait_for_timeout(1000)
    assert engine.running == 0
    assert len(engine.requests) == 1


def test_a_reload_keeps_choice_question_and_k(page: Page, book: Path) -> None:
    upload(page, book)
    page.fill("#question", "Who went up?")
    page.focus("#k")
    page.keyboard.press("End")
    shown = page.locator("#k-shown").inner_text()
    page.reload()
    expect(page.locator("#documents input")).to_be_checked()
    expect(page.locator("#question")).to_have_value("Who went up?")
    expect(page.locator("#k-shown")).to_have_text(shown)


def test_two_tabs_see_the_same_documents(page: Page, url: str, book: Path) -> None:
    other = page.context.new_page()
    other.goto(url)
    expect(other.locator("#no-documents")).to_be_visible()
    upload(page, book)
    expect(other.locator("#documents")).to_contain_text("walks")
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove walks").click()
    expect(other.locator("#no-documents")).to_be_visible()
    expect(page.locator("#no-documents")).to_be_visible()


def test_what_documents_say_is_text(page: Page) -> None:
    page.click("#paste summary")
    page.fill("#paste-name", "<img src=x onerror=document.title='owned'>")
    page.fill("#paste-text", "<script>document.title='owned'</script> " * 20)
    page.click("#paste-form button")
    expect(page.locator("#documents")).to_contain_text("<img")
    ask(page)
    page.locator("#extensible .sources button").first.click()
    expect(page.locator("#text")).to_contain_text("<script>")
    assert page.title() == "Extensible Embedding"


def test_a_key_is_asked_for_once(browser: Browser, make: Make) -> None:
    digest = hashlib.sha256(b"sesame-sesame-sesame").digest()
    keys = Keys([Key(digest=digest, client=Client(name="me"))])
    with serving(make(keys)) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#key-form")).to_be_visible()
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        page.fill("#key", "sesame-sesame-sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#key-form")).to_be_hidden()
        page.reload()
        expect(page.locator("#server")).not_to_be_empty()
        expect(page.locator("#key-form")).to_be_hidden()
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_text_can_be_read_and_nothing_sticks_out(
    browser: Browser, url: str, book: Path, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(url)
    upload(page, book)
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) >= 4.5
    context.close()


def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Page, book: Path) -> None:
    upload(page, book)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, textarea, button')].filter(e => "
        "!(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    seen = set()
    page.keyboard.press("Tab")
    for _ in range(30):
        seen.add(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert seen >= {"file", "document-0", "k", "expand", "compare", "question", "ask"}


CONTRAST = """() => {
  const value = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255).map((c) =>
      c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("p, label, h1, h2, h3, button, dt, dd, small")];
  return Math.min(...texts.filter((e) => e.textContent.trim() && e.checkVisibility()).map((e) => {
    const [a, b] = [value(getComputedStyle(e).color), value(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""
